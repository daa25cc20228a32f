//! Making a data directory what another one is, with as few changes as it takes: pages
//! that are the same are not written, so that a fork goes on sharing them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pgcowfs::block::BLOCK_SIZE;
use pgcowfs::device::foreign::{Place, same};

use super::cluster::changed;
use crate::error::{Context, Result};

/// What is to be there; paths are relative.
pub struct Wanted<'a> {
    /// Directories, each after the one it is in, and their modes.
    pub dirs: &'a [(PathBuf, u32)],
    /// Links, and where they lead.
    pub links: &'a [(PathBuf, PathBuf)],
    /// The files.
    pub files: &'a HashSet<&'a Path>,
}

/// Removes what is not wanted, and makes the directories and links that are.
pub fn shape(top: &Path, wanted: &Wanted) -> Result<()> {
    let dirs: HashSet<&Path> = wanted.dirs.iter().map(|(rel, _)| rel.as_path()).collect();
    let links: HashMap<&Path, &Path> =
        wanted.links.iter().map(|(rel, to)| (rel.as_path(), to.as_path())).collect();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let shown = top.join(&dir);
        for entry in fs::read_dir(&shown).at("list", &shown)? {
            let entry = entry.at("list", &shown)?;
            let (rel, path) = (dir.join(entry.file_name()), entry.path());
            let kind = entry.file_type().at("look at", &path)?;
            if kind.is_dir() {
                match dirs.contains(rel.as_path()) {
                    true => todo.push(rel),
                    false => fs::remove_dir_all(&path).at("remove", &path)?,
                }
                continue;
            }
            let stays = match kind.is_symlink() {
                true => match links.get(rel.as_path()) {
                    Some(to) => fs::read_link(&path).at("read the link", &path)? == *to,
                    None => false,
                },
                false => kind.is_file() && wanted.files.contains(rel.as_path()),
            };
            if !stays {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
    }
    for (rel, mode) in wanted.dirs {
        let path = top.join(rel);
        match fs::DirBuilder::new().mode(*mode).create(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => set_mode(&path, *mode)?,
            other => other.at("make", &path)?,
        }
    }
    for (rel, to) in wanted.links {
        let path = top.join(rel);
        match symlink(to, &path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => other.at("make the link", &path)?,
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let now = fs::symlink_metadata(path).at("look at", path)?.permissions().mode() & 0o7777;
    match now == mode {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("set the mode of", path),
    }
}

/// Makes the file `to` what the file at `from` is, which was `meta` when it was found;
/// `tell` hears of the bytes. Returns how many were written.
pub fn file(from: &Path, meta: &Metadata, to: &Path, tell: &mut dyn FnMut(u64) -> Result<()>) -> Result<u64> {
    let found = Place::itself(from).at("read", from)?;
    if !same(found.meta(), meta) {
        return Err(changed(from));
    }
    let mut source = found.open().at("read", from)?;
    let mode = meta.permissions().mode() & 0o777;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(mode).custom_flags(libc::O_NOFOLLOW);
    let target = options.open(to).at("open", to)?;
    let before = target.metadata().at("look at", to)?;
    if before.len() > meta.len() {
        target.set_len(meta.len()).at("write", to)?;
    }
    let there = before.len().min(meta.len());
    let (mut new, mut old) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    let mut written = 0;
    while at < meta.len() {
        let length = usize::try_from(meta.len() - at).unwrap_or(usize::MAX).min(new.len());
        match source.read_exact(&mut new[..length]) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(changed(from)),
            other => other.at("read", from)?,
        }
        let known = usize::try_from(there.saturating_sub(at)).unwrap_or(usize::MAX).min(length);
        target.read_exact_at(&mut old[..known], at).at("read", to)?;
        for (first, end) in different(&new[..length], &old[..known]) {
            target.write_all_at(&new[first..end], at + first as u64).at("write", to)?;
            written += (end - first) as u64;
        }
        tell(length as u64)?;
        at += length as u64;
    }
    // It may end with a hole.
    if target.metadata().at("look at", to)?.len() < meta.len() {
        target.set_len(meta.len()).at("write", to)?;
    }
    if !same(&source.metadata().at("read", from)?, meta) {
        return Err(changed(from));
    }
    set_mode(to, mode)?;
    let now = target.metadata().at("look at", to)?;
    if (now.mtime(), now.mtime_nsec()) != (meta.mtime(), meta.mtime_nsec()) {
        let modified = meta.modified().at("look at", from)?;
        target.set_modified(modified).at("set the time of", to)?;
    }
    Ok(written)
}

/// The stretches of `new`, in whole blocks, that are not in `old`, which may be shorter:
/// beyond its end are zeros.
fn different(new: &[u8], old: &[u8]) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (number, block) in new.chunks(BLOCK_SIZE).enumerate() {
        let first = number * BLOCK_SIZE;
        let end = first + block.len();
        let is_same = match old.get(first..end) {
            Some(before) => before == block,
            None => old.len() <= first && block.iter().all(|byte| *byte == 0),
        };
        match found.last_mut() {
            _ if is_same => {}
            Some((_, last)) if *last == first => *last = end,
            _ => found.push((first, end)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let b = BLOCK_SIZE;
        let page = |byte: u8| vec![byte; b];
        let pages = |bytes: &[u8]| bytes.iter().flat_map(|byte| page(*byte)).collect::<Vec<_>>();
        for (new, old, expected) in [
            (pages(&[1, 2, 3]), pages(&[1, 2, 3]), vec![]),
            (pages(&[1, 9, 9, 3]), pages(&[1, 2, 3, 3]), vec![(b, 3 * b)]),
            (pages(&[9, 2, 9]), pages(&[1, 2, 3]), vec![(0, b), (2 * b, 3 * b)]),
            (pages(&[1, 2]), pages(&[1]), vec![(b, 2 * b)]),
            (pages(&[1, 0]), pages(&[1]), vec![]),
            (vec![1; 10], vec![1; 10], vec![]),
            (vec![1; 10], vec![1; 9], vec![(0, 10)]),
        ] {
            assert_eq!(different(&new, &old), expected);
        }
    }

    #[test]
    fn a_directory_becomes_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for path in ["from/a", "to/a", "to/gone/deep", "to/was-a-file-dir"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let big: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 8192) as u8).collect();
        fs::write(from.join("a/big"), &big).unwrap();
        let mut other = big.clone();
        other[8192 * 5] ^= 1;
        other.extend_from_slice(&[7; 100]);
        fs::write(to.join("a/big"), other).unwrap();
        fs::write(from.join("new"), b"new").unwrap();
        fs::write(to.join("stray"), b"x").unwrap();
        symlink("elsewhere", to.join("link")).unwrap();
        symlink("a/big", to.join("new")).unwrap();
        let files = HashSet::from([Path::new("a/big"), Path::new("new")]);
        let wanted = Wanted {
            dirs: &[("a".into(), 0o750), ("b".into(), 0o700)],
            links: &[("link".into(), "a".into())],
            files: &files,
        };
        shape(&to, &wanted).unwrap();
        for rel in files {
            let (from, mut told) = (from.join(rel), 0);
            let meta = fs::symlink_metadata(&from).unwrap();
            let tell = &mut |bytes| {
                told += bytes;
                Ok(())
            };
            let written = file(&from, &meta, &to.join(rel), tell).unwrap();
            assert_eq!(written, if rel == Path::new("new") { 3 } else { 8192 });
            assert_eq!((told, fs::read(to.join(rel)).unwrap()), (meta.len(), fs::read(&from).unwrap()));
            assert_eq!(fs::metadata(to.join(rel)).unwrap().modified().unwrap(), meta.modified().unwrap());
        }
        let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "link", "new"]);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("a"));
        assert_eq!(fs::metadata(to.join("a")).unwrap().permissions().mode() & 0o777, 0o750);
    }
}
