//! Positive controls: writes that are lost on purpose must be found, or a run that finds nothing means nothing.
//!
//! They need no hook in the program: after a kill, parts of the store are replaced by older copies of themselves, as if
//! a disk had acknowledged them and forgotten them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::round::Cluster;
use crate::common::check::check_store;
use crate::common::process::run;
use crate::harness::Settings;

const PAGE: usize = 8192;

/// Err names the control that found nothing.
pub fn run_all() -> Result<(), String> {
    lost_pages()?;
    lost_map()
}

fn cluster() -> Cluster {
    Cluster::make(Settings { full_page_writes: false, checksums: false })
}

/// Pages of a delta file as they were before: the store's check names them.
fn lost_pages() -> Result<(), String> {
    let mut cluster = cluster();
    let old: Vec<(PathBuf, Vec<u8>)> = cluster.at_rest(|dir| {
        let files = fs::read_dir(dir.join("delta")).expect("list the delta files").flatten();
        files.map(|file| (file.path(), fs::read(file.path()).expect("read a delta file"))).collect()
    });
    cluster.kill_after(300);
    let mut restored = 0;
    for (path, bytes) in old {
        let file = File::options().read(true).write(true).open(&path).expect("open a delta file");
        let mut now = [0; PAGE];
        for (page, offset) in bytes.chunks_exact(PAGE).zip((0..).step_by(PAGE)) {
            file.read_exact_at(&mut now, offset).expect("read a page");
            // Sixteen of them: some slots hold nothing any more, and must not count.
            if now != page && restored < 16 {
                file.write_all_at(page, offset).expect("write a page");
                restored += 1;
            }
        }
    }
    let broken = check_store(cluster.dir());
    println!("control: {restored} pages as they were before: the check finds {} broken", broken.len());
    if broken.iter().any(|line| line.contains("does not match its CRC")) {
        Ok(())
    } else {
        Err(format!("{restored} lost page writes passed the store's check: {broken:?}"))
    }
}

/// The block map as it was before: commits are missing, or pages do not match.
fn lost_map() -> Result<(), String> {
    let mut cluster = cluster();
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        run(Command::new("cp").arg("-a").arg(from).arg(to)).expect_ok();
    };
    cluster.at_rest(|dir| copy(&dir.join("map"), &dir.with_extension("old-map")));
    let window = cluster.kill_after(600);
    let dir = cluster.dir();
    copy(&dir.with_extension("old-map"), &dir.join("map"));
    let broken = check_store(dir);
    let verdict = cluster.verdict(&window);
    println!(
        "control: the block map as it was before: the check finds {} broken, the oracle {}",
        broken.len(),
        if verdict.is_ok() { "nothing" } else { "something" }
    );
    if broken.is_empty() && verdict.is_ok() {
        return Err("a lost block map passed the store's check and the oracle".to_owned());
    }
    Ok(())
}
