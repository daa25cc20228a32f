//! Bringing a stopped cluster into a fork's data directory: its files, what its links
//! lead to, and its configuration, wherever it lies.

use std::path::Path;

use super::cluster::Cluster;
use super::tree::DirTree;
use super::{adopt, import};
use crate::error::Result;
use crate::ui::Ui;

/// What the data directory has before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing.
    Copy,
    /// What the cluster has: it is used in place.
    InPlace,
    /// What the cluster, or one like it, had at some time: only pages that differ are
    /// written.
    Over,
}

/// What came in.
#[derive(Default)]
pub struct Brought {
    /// What its user should know.
    pub warnings: Vec<String>,
    /// Settings that it needs here; the user's own win.
    pub settings: Vec<(String, String)>,
    /// Bytes that were written because they differ; with [`Way::Over`] only.
    pub written: u64,
}

impl Brought {
    /// Turns encryption off where it cannot be used here.
    pub fn check_ssl(&mut self, pgdata: &Path) -> Result<()> {
        if let Some(warning) = import::check_ssl(pgdata)? {
            self.settings.push(("ssl".into(), "off".into()));
            self.warnings.push(warning);
        }
        Ok(())
    }
}

/// Brings in `cluster`, whose postgresql.conf is `conf`. Runs as the fork's user.
pub fn bring(cluster: &Cluster, conf: &Path, pgdata: &Path, ui: &Ui, way: Way) -> Result<Brought> {
    let mut brought = Brought::default();
    brought.warnings = match way {
        Way::Copy => import::copy(cluster, pgdata, ui)?,
        Way::InPlace => import::bring_outside_in(cluster, pgdata, ui)?,
        Way::Over => {
            let (left_out, written) = import::copy_over(cluster, pgdata, ui)?;
            brought.written = written;
            left_out
        }
    };
    import::link_tablespaces(pgdata, cluster.major)?;
    adopt::adopt(cluster, conf, &DirTree(pgdata.into()))?;
    brought.check_ssl(pgdata)?;
    // A base backup never is.
    if !cluster.control.clean && !pgdata.join("backup_label").exists() {
        let warning = "the source was not shut down cleanly; the first start recovers it";
        brought.warnings.push(warning.into());
    }
    Ok(brought)
}
