//! Folders: class folders of pictures, pictures side by side, or shards of pictures.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{archive, idx, is_hidden, is_picture, Ignored, Label, Listed, Listing, Place, SourceError};

/// Lists a folder. What lies directly in it decides: tars are shards of pictures, folders are classes (searched to any
/// depth), else the pictures themselves count.
pub(super) fn list(path: &Path) -> Result<Listing, SourceError> {
    let (mut folders, mut tars, mut images, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(SourceError::io(path, "list"))? {
        let entry = entry.map_err(SourceError::io(path, "list"))?;
        let (name, child) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if is_hidden(&name) {
            continue;
        }
        if child.is_dir() {
            folders.push(child);
        } else if name.ends_with(".tar") {
            tars.push(child);
        } else if idx::is_idx(&child) {
            images.push(child);
        } else {
            others.push(name);
        }
    }
    [&mut folders, &mut tars, &mut images]
        .into_iter()
        .for_each(|paths| paths.sort());
    let mut listing = Listing::default();
    match (folders.as_slice(), tars.as_slice(), images.as_slice()) {
        ([], [], [only]) => {
            let labels = idx::labels_beside(only).map(|path| name_of(&path));
            others.retain(|name| Some(name) != labels.as_ref());
            listing = idx::list(only)?;
            leave_out(others, Ignored::BESIDE_IDX, &mut listing);
        }
        ([], [], [_, ..]) => {
            let found = format!("{} IDX files of pictures", images.len());
            return Err(SourceError::Format {
                path: path.to_owned(),
                found,
                expected: "the one to read".into(),
            });
        }
        ([], [_, ..], _) => {
            others.extend(images.iter().map(|path| name_of(path)));
            leave_out(others, Ignored::NO_SHARD, &mut listing);
            for tar in &tars {
                archive::append(tar, &mut listing)?;
            }
        }
        ([], ..) => append(path, path, &Label::None, &mut listing)?,
        _ => {
            others.extend(tars.iter().chain(&images).map(|path| name_of(path)));
            leave_out(others, Ignored::NO_CLASS, &mut listing);
            for folder in &folders {
                let class = name_of(folder);
                append(path, folder, &Label::Folder(class.clone()), &mut listing)?;
                listing.folders.push(class);
            }
        }
    }
    Ok(listing)
}

/// Lists files that are not read: those that hold pictures for `reason`, the others for holding none.
fn leave_out(mut names: Vec<String>, reason: &'static str, listing: &mut Listing) {
    names.sort();
    let holds_pictures = |name: &str| is_picture(name) || name.ends_with(".tar") || idx::is_idx(Path::new(name));
    listing.ignored.extend(names.into_iter().map(|name| Ignored {
        reason: if holds_pictures(&name) {
            reason
        } else {
            Ignored::NO_PICTURE
        },
        name,
    }));
}

/// Adds the pictures below `folder`, sorted by their path, with names relative to `root`.
fn append(root: &Path, folder: &Path, class: &Label, listing: &mut Listing) -> Result<(), SourceError> {
    for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_owned();
            SourceError::Io {
                path,
                action: "list",
                reason: error.into(),
            }
        })?;
        let path = entry.path();
        let relative = path
            .strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .replace('\\', "/");
        if !entry.file_type().is_file() || is_hidden(&relative) {
            continue;
        }
        if !is_picture(&relative) {
            listing.ignored.push(Ignored {
                name: relative,
                reason: Ignored::NO_PICTURE,
            });
            continue;
        }
        let bytes = entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let place = Place::File {
            path: path.into(),
            bytes,
        };
        listing.pictures.push(Listed {
            name: relative,
            class: class.clone(),
            place,
        });
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(PathBuf::from)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
