//! Debian's layout: data under /var/lib/postgresql/VERSION/NAME, configuration
//! under /etc/postgresql/VERSION/NAME.

use std::fs;
use std::path::{Path, PathBuf};

use pgcowfs::device::foreign::read_small;

use super::conf;
use super::tree::Text;

/// Where Debian's tools keep configuration; they read the same variable.
fn root() -> PathBuf {
    std::env::var_os("PG_CLUSTER_CONF_ROOT").map_or_else(|| "/etc/postgresql".into(), PathBuf::from)
}

/// The configuration directory of the cluster whose data is in `data`.
pub fn config_dir(data: &Path) -> Option<PathBuf> {
    config_dir_below(&root(), data)
}

fn config_dir_below(root: &Path, data: &Path) -> Option<PathBuf> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
    };
    let matches = |dir: &PathBuf| {
        // A file that this user cannot read cannot be brought in either.
        let Ok(bytes) = read_small(&dir.join("postgresql.conf"), conf::BYTES_MAX) else {
            return false;
        };
        let text = Text::decode(bytes).text;
        let setting = conf::entries(&text).filter(|e| e.name == "data_directory").last();
        setting.is_some_and(|e| Path::new(&e.value).canonicalize().is_ok_and(|p| p == data))
    };
    below(root).iter().flat_map(|version| below(version)).find(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_configuration_by_its_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().canonicalize().unwrap().join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        for (name, value) in
            [("main", "/nowhere".into()), ("other", dir.path().join("link").display().to_string())]
        {
            let conf = dir.path().join("etc/15").join(name);
            fs::create_dir_all(&conf).unwrap();
            fs::write(conf.join("postgresql.conf"), format!("data_directory = '{value}' # here\n")).unwrap();
        }
        let found = config_dir_below(&dir.path().join("etc"), &data).unwrap();
        assert!(found.ends_with("15/other"), "{found:?}");
        assert_eq!(config_dir_below(&dir.path().join("etc"), dir.path()), None);
    }
}
