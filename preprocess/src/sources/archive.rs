//! Tars, read in place: of pictures, of class folders, of tars (one a class), and WebDataset shards.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::{is_hidden, is_picture, webdataset, Archive, Ignored, Label, Listed, Listing, Place, SourceError};

/// A regular file in a tar: its name and the bytes it occupies in the outermost file.
pub(super) struct Member {
    pub name: String,
    pub offset: u64,
    pub bytes: u64,
}

pub(super) fn list(path: &Path) -> Result<Listing, SourceError> {
    let mut listing = Listing::default();
    append(path, &mut listing)?;
    Ok(listing)
}

/// Adds the pictures of one tar.
pub(super) fn append(path: &Path, listing: &mut Listing) -> Result<(), SourceError> {
    let file = File::open(path).map_err(SourceError::io(path, "open"))?;
    let length = file.metadata().map_err(SourceError::io(path, "inspect"))?.len();
    refuse_compressed(path, &file)?;
    let number = listing.archives.len() as u32;
    let members = members(path, &file, 0, length)?;
    let place = |member: &Member| Place::Member {
        archive: number,
        offset: member.offset,
        bytes: member.bytes,
        name: member.name.as_str().into(),
    };
    if webdataset::is_one(&members) {
        webdataset::append(path, &file, &members, place, listing)?;
    } else {
        for member in members {
            if member.name.ends_with(".tar") {
                append_class_tar(path, &file, number, &member, listing)?;
            } else if is_picture(&member.name) {
                let class = match member.name.rsplit_once('/') {
                    Some((folders, _)) => Label::Folder(folders.rsplit('/').next().unwrap_or(folders).to_owned()),
                    None => Label::None,
                };
                listing.pictures.push(Listed {
                    place: place(&member),
                    name: member.name,
                    class,
                });
            } else {
                listing.ignored.push(Ignored {
                    name: member.name,
                    reason: Ignored::NO_PICTURE,
                });
            }
        }
        one_folder_is_no_class(&mut listing.pictures);
    }
    listing.archives.push(Archive {
        path: path.to_owned(),
        file,
    });
    Ok(())
}

/// A tar inside the tar, named after the class whose pictures it holds, as in ILSVRC2012_img_train.tar.
fn append_class_tar(
    path: &Path,
    file: &File,
    number: u32,
    tar: &Member,
    listing: &mut Listing,
) -> Result<(), SourceError> {
    let base = tar.name.rsplit('/').next().unwrap_or(&tar.name);
    let class = base.trim_end_matches(".tar").to_owned();
    for member in members(path, file, tar.offset, tar.bytes)? {
        if is_picture(&member.name) {
            let place = Place::Member {
                archive: number,
                offset: member.offset,
                bytes: member.bytes,
                name: format!("{}/{}", tar.name, member.name).into(),
            };
            let name = format!("{class}/{}", member.name);
            listing.pictures.push(Listed {
                name,
                class: Label::Folder(class.clone()),
                place,
            });
        } else {
            listing.ignored.push(Ignored {
                name: format!("{}/{}", tar.name, member.name),
                reason: Ignored::NO_PICTURE,
            });
        }
    }
    listing.folders.push(class);
    Ok(())
}

/// An archive of the one folder `val/` is an archive of pictures; several folders are classes.
fn one_folder_is_no_class(pictures: &mut [Listed]) {
    let first = pictures.first().map(|picture| picture.class.clone());
    if pictures.iter().all(|picture| Some(&picture.class) == first.as_ref()) {
        pictures.iter_mut().for_each(|picture| picture.class = Label::None);
    }
}

/// The regular files of the tar in bytes `start..start + length` of `file`.
fn members(path: &Path, file: &File, start: u64, length: u64) -> Result<Vec<Member>, SourceError> {
    let invalid = |error: io::Error| SourceError::Format {
        path: path.to_owned(),
        found: format!("invalid tar: {error}"),
        expected: "a folder of pictures, a whole uncompressed tar, or an IDX file".into(),
    };
    let mut archive = tar::Archive::new(Window {
        file,
        start,
        length,
        position: 0,
    });
    let mut members = Vec::new();
    for entry in archive.entries_with_seek().map_err(invalid)? {
        let entry = entry.map_err(invalid)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(SourceError::Format {
                path: path.to_owned(),
                found: format!("{name} ends beyond the end of the tar"),
                expected: "a whole tar: was it cut short?".into(),
            });
        }
        if !is_hidden(&name) {
            members.push(Member {
                name,
                offset: start + offset,
                bytes,
            });
        }
    }
    Ok(members)
}

fn refuse_compressed(path: &Path, file: &File) -> Result<(), SourceError> {
    let start = read_range(file, 0, 4).unwrap_or_default();
    let kind = match start.as_slice() {
        [0x1F, 0x8B, ..] => "gzip",
        [0x28, 0xB5, 0x2F, 0xFD] => "zstd",
        [0xFD, b'7', b'z', b'X'] => "xz",
        [b'P', b'K', ..] => "zip",
        _ => return Ok(()),
    };
    Err(SourceError::Format {
        path: path.to_owned(),
        found: format!("{kind} data"),
        expected: "an uncompressed tar, so that its pictures can be read in place".into(),
    })
}

/// Reads bytes `offset..offset + length` without moving a shared position.
pub(super) fn read_range(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut done = 0;
    while done < bytes.len() {
        match read_at(file, &mut bytes[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(bytes)
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

/// A part of a file as a file of its own.
struct Window<'a> {
    file: &'a File,
    start: u64,
    length: u64,
    position: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = read_at(self.file, &mut buffer[..count], self.start + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(step) => self.length.checked_add_signed(step),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
