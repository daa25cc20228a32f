//! What makes a cluster's data fit to be handed out, before anybody sees it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One step of masking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// The database that it begins in.
    pub database: String,
    /// What does it.
    pub how: How,
}

/// What masks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// A script for psql.
    Script {
        /// The file's name.
        name: String,
        /// What was in it.
        text: String,
    },
    /// A program.
    Program(PathBuf),
    /// PostgreSQL Anonymizer, in all databases that have it.
    Anon,
}

impl Mask {
    /// What it is called.
    pub fn name(&self) -> String {
        match &self.how {
            How::Script { name, .. } => name.clone(),
            How::Program(path) => path.display().to_string(),
            How::Anon => "anon".into(),
        }
    }
}

/// What masks a fork of one whose forks are masked by `forced`, if it is masked by `own`,
/// too.
pub fn all(forced: &[Mask], own: &[Mask]) -> Vec<Mask> {
    // It was made of such a fork before.
    if own.starts_with(forced) { own.to_vec() } else { [forced, own].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mask_is_added_twice() {
        let mask = |name: &str| Mask {
            database: "postgres".into(),
            how: How::Script { name: name.into(), text: String::new() },
        };
        let (forced, own) = (vec![mask("a")], vec![mask("b")]);
        let both = all(&forced, &own);
        assert_eq!(both, [mask("a"), mask("b")]);
        assert_eq!(all(&forced, &both), both);
        assert_eq!(all(&[], &own), own);
    }
}
