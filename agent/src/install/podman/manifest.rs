//! What is read of a manifest before podman reads it. No YAML parser is worth its weight for that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::install::InstallError;

/// Gives the one manifest at the top of an unpacked archive its name.
pub(super) fn find(dir: &Path, name: &Path) -> Result<(), InstallError> {
    let files = files(dir).map_err(InstallError::io(format!("reading {}", dir.display())))?;
    let manifests: Vec<_> = files.iter().filter(|path| ends(path, &[".yaml", ".yml", ".json"])).collect();
    match manifests.as_slice() {
        [manifest] => {
            fs::rename(manifest, name).map_err(InstallError::io(format!("making {}", name.display())))
        }
        [] => Err(InstallError::Payload(
            "no manifest (.yaml, .yml, .json) is at the top of the archive".to_owned(),
        )),
        several => Err(InstallError::Payload(format!(
            "{} manifests are at the top of the archive: put them into one, with `---` between",
            several.len()
        ))),
    }
}

/// The image archives of an unpacked payload: at its top, and in `images`.
pub(super) fn archives(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut archives = files(dir)?;
    match files(&dir.join("images")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        more => archives.extend(more?),
    }
    archives.retain(|path| ends(path, &[".tar", ".tar.gz", ".tgz"]));
    archives.sort();
    Ok(archives)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn ends(path: &Path, ends: &[&str]) -> bool {
    path.to_str().is_some_and(|path| ends.iter().any(|end| path.ends_with(end)))
}

/// Whether it may be a manifest at all.
pub(super) fn plausible(text: &str) -> bool {
    values(text, "kind").next().is_some()
}

/// The images that it names, each once.
pub(super) fn images(text: &str) -> Vec<String> {
    let mut images: Vec<String> = values(text, "image").map(str::to_owned).collect();
    images.sort();
    images.dedup();
    images
}

/// The plain or quoted text after each `key:`, in block style, flow style or JSON.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(move |line| {
        line.match_indices(key).filter_map(move |(at, _)| {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| !" \t{,\"'".contains(c)) {
                return None;
            }
            let rest = line[at + key.len()..].trim_start_matches(['"', '\'']);
            let value = rest.trim_start().strip_prefix(':')?.trim_start();
            let value = match value.chars().next()? {
                quote @ ('"' | '\'') => value[1..].split(quote).next()?,
                _ => value.split([' ', '\t', ',', '}', '#']).next()?,
            };
            (!value.is_empty()).then_some(value)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_a_manifest_are_found_however_it_is_written() {
        let block = "kind: Pod\nspec:\n  containers:\n  - image: localhost/app:1 # main\n    imagePullPolicy: Never\n  \
                     - name: b\n    image: \"redis:7\"\n  # image: old\n  - image: 'redis:7'\n";
        assert_eq!(images(block), ["localhost/app:1", "redis:7"]);
        let flow = "kind: Pod\nspec: {containers: [{name: a, image: localhost/app:1}, {image: b@sha256:ab, name: b}]}";
        assert_eq!(images(flow), ["b@sha256:ab", "localhost/app:1"]);
        let json = r#"{"kind":"Pod","spec":{"containers":[{"image":"localhost/app:1","name":"x"}]}}"#;
        assert_eq!(images(json), ["localhost/app:1"]);
        assert!(plausible(json) && plausible(flow) && plausible(block) && !plausible("#!/bin/sh\n"));
    }
}
