//! Disks in temporary folders.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use backends::BlockBackend;
use disk::{Disk, DiskError, RawFile, RawFileError};
use proptest::prelude::*;
use tempfile::TempDir;

struct Folder(TempDir, File);

impl Folder {
    fn new() -> Folder {
        let dir = TempDir::new().unwrap();
        let file = File::open(dir.path()).unwrap();
        Folder(dir, file)
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn describe(&self, text: &str) {
        std::fs::write(self.0.path().join("disk.json"), text).unwrap();
    }
}

fn read(backend: &dyn BlockBackend, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    let (a, b) = bytes.split_at_mut(len / 3);
    backend.read(offset, &mut [IoSliceMut::new(a), IoSliceMut::new(b)]).unwrap();
    bytes
}

#[test]
fn a_disk_is_blank_at_each_start_until_a_guest_has_made_its_file_system() {
    let folder = Folder::new();
    let path = folder.0.path().join("layer-0.raw");
    disk::create(folder.fd(), 1 << 20).unwrap();
    // Killed within mke2fs.
    let disk = disk::open(folder.fd()).unwrap();
    disk.write(512, &[IoSlice::new(b"half a file system")]).unwrap();
    // Another that looks on while it is in use changes nothing.
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::InUse)));
    assert_eq!(read(&disk, 512, 18), b"half a file system");
    drop(disk);
    assert_eq!(read(&disk::open(folder.fd()).unwrap(), 512, 18), [0; 18]);
    // Killed while it was made blank.
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let disk = disk::open(folder.fd()).unwrap();
    assert_eq!(disk.len(), 1 << 20);
    disk.write(512, &[IoSlice::new(b"what the user has")]).unwrap();
    disk::made(folder.fd()).unwrap();
    disk::made(folder.fd()).unwrap();
    drop(disk);
    assert_eq!(read(&disk::open(folder.fd()).unwrap(), 512, 17), b"what the user has");
    assert!(!folder.0.path().join("unmade").exists());
    // One of a version that had no such mark.
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::LayerSize { .. })));
}

#[test]
fn a_disk_is_made_used_and_found_again() {
    let folder = Folder::new();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::Missing)));
    assert!(matches!(disk::check(folder.fd()), Err(DiskError::Missing)));
    disk::create(folder.fd(), 64 << 30).unwrap();
    assert!(matches!(disk::create(folder.fd(), 64 << 30), Err(DiskError::Exists)));
    let disk = disk::open(folder.fd()).unwrap();
    assert_eq!((disk.len(), disk.read_only()), (64 << 30, false));
    assert_eq!(read(&disk, (64 << 30) - 512, 512), [0; 512]);
    disk.write(4096, &[IoSlice::new(b"hello "), IoSlice::new(b"disk")]).unwrap();
    disk.flush().unwrap();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::InUse)));
    let report = disk::check(folder.fd()).unwrap();
    assert_eq!(report.size, 64 << 30);
    assert!(report.allocated > 0 && report.allocated < 1 << 20);
    disk::made(folder.fd()).unwrap();
    drop(disk);
    let disk = disk::open(folder.fd()).unwrap();
    assert_eq!(read(&disk, 4096, 10), b"hello disk");
    let text = std::fs::read_to_string(folder.0.path().join("disk.json")).unwrap();
    assert_eq!(
        text,
        "{\"format\":\"vivarium-disk\",\"version\":1,\"size\":68719476736,\
         \"layers\":[{\"file\":\"layer-0.raw\",\"format\":\"raw\"}]}\n"
    );
    assert_eq!(std::fs::metadata(folder.0.path().join("layer-0.raw")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn descriptors_can_be_handed_on_with_the_lock() {
    let folder = Folder::new();
    disk::create(folder.fd(), 1 << 20).unwrap();
    let disk = disk::open(folder.fd()).unwrap();
    let description = disk.description().clone();
    let fds = disk.layer_descriptors().iter().map(|fd| fd.as_fd().try_clone_to_owned().unwrap()).collect();
    drop(disk);
    let again = Disk::from_parts(description.clone(), fds).unwrap();
    again.write(0, &[IoSlice::new(b"x")]).unwrap();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::InUse)));
    drop(again);
    disk::open(folder.fd()).unwrap();
    assert!(matches!(Disk::from_parts(description, vec![]), Err(DiskError::Layers(0))));
}

#[test]
fn an_interrupted_creation_is_no_disk_and_is_made_anew() {
    let folder = Folder::new();
    std::fs::write(folder.0.path().join("layer-0.raw"), "half").unwrap();
    std::fs::write(folder.0.path().join("disk.json.new"), "{").unwrap();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::Missing)));
    disk::create(folder.fd(), 1 << 20).unwrap();
    let disk = disk::open(folder.fd()).unwrap();
    assert_eq!(read(&disk, 0, 4), [0; 4]);
    assert!(!folder.0.path().join("disk.json.new").exists());
}

#[test]
fn what_is_not_as_described_is_refused() {
    let folder = Folder::new();
    for size in [0, 1, 4095, 4097, (64 << 40) + 4096, u64::MAX] {
        assert!(matches!(disk::create(folder.fd(), size), Err(DiskError::Size(_))), "{size}");
    }
    disk::create(folder.fd(), 1 << 20).unwrap();
    disk::made(folder.fd()).unwrap();
    let good = std::fs::read_to_string(folder.0.path().join("disk.json")).unwrap();
    let expect = |text: &str, wanted: fn(&DiskError) -> bool| {
        folder.describe(text);
        for error in [disk::open(folder.fd()).unwrap_err(), disk::check(folder.fd()).unwrap_err()] {
            assert!(wanted(&error), "{text}: {error:?}");
        }
    };
    expect(&good.replace("\"version\":1", "\"version\":2"), |e| {
        matches!(e, DiskError::Version { found: 2, known: 1 })
    });
    // A newer version may have other fields; it is its number that is told.
    expect(r#"{"format":"vivarium-disk","version":7,"chunks":[]}"#, |e| {
        matches!(e, DiskError::Version { .. })
    });
    expect(
        &good.replace("vivarium-disk", "qcow2\\n"),
        |e| matches!(e, DiskError::Format(f) if f == "qcow2\\n"),
    );
    expect(&good.replace("1048576", "1048577"), |e| matches!(e, DiskError::Size(_)));
    expect(&good.replace("1048576", "2097152"), |e| {
        matches!(e, DiskError::LayerSize { expected: 2_097_152, found: 1_048_576, .. })
    });
    expect(&good.replace("1048576", "524288"), |e| matches!(e, DiskError::LayerSize { .. }));
    expect(&good.replace("layer-0.raw", "layer-1.raw"), |e| matches!(e, DiskError::LayerMissing(_)));
    for name in ["../layer-0.raw", "/etc/passwd", "layer-.raw", "layer-x.raw", "", "layer-0.qcow2"] {
        expect(&good.replace("layer-0.raw", name), |e| matches!(e, DiskError::LayerName(_)));
    }
    expect(&good.replace("\"raw\"", "\"qcow2\""), |e| matches!(e, DiskError::Description(_)));
    expect(&good.replace("[{", "[{\"file\":\"layer-1.raw\",\"format\":\"raw\"},{"), |e| {
        matches!(e, DiskError::Layers(2))
    });
    expect(&good.replace("\"size\"", "\"backing\":\"/x\",\"size\""), |e| {
        matches!(e, DiskError::Description(_))
    });
    expect("", |e| matches!(e, DiskError::Description(_)));
    expect(&" ".repeat(70_000), |e| matches!(e, DiskError::TooLong));
    // A layer that is a link elsewhere is not followed.
    folder.describe(&good);
    std::fs::remove_file(folder.0.path().join("layer-0.raw")).unwrap();
    let elsewhere = folder.0.path().join("elsewhere");
    File::create(&elsewhere).unwrap().set_len(1 << 20).unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.0.path().join("layer-0.raw")).unwrap();
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::Io(..))));
    std::fs::remove_file(folder.0.path().join("layer-0.raw")).unwrap();
    std::fs::create_dir(folder.0.path().join("layer-0.raw")).unwrap();
    assert!(disk::open(folder.fd()).is_err());
}

#[test]
fn raw_files_are_what_they_are_opened_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    let mut file = File::create(&path).unwrap();
    file.write_all(&[7; 5000]).unwrap();
    assert!(matches!(RawFile::new(file, 4096, true), Err(RawFileError::Access("reading"))));
    let open = || File::open(&path).unwrap();
    assert!(matches!(RawFile::new(open(), 4096, false), Err(RawFileError::Access(_))));
    let too_short = RawFile::new(open(), 8193, true).unwrap_err();
    assert!(matches!(too_short, RawFileError::TooShort { expected: 8193, found: 5000 }));
    assert!(matches!(RawFile::new(File::open(dir.path()).unwrap(), 0, true), Err(RawFileError::Kind)));
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    assert!(matches!(RawFile::new(null, 0, false), Err(RawFileError::Kind)));

    let device = RawFile::new(open(), 8192, true).unwrap();
    assert_eq!((device.len(), device.read_only()), (8192, true));
    let bytes = read(&device, 4096, 4096);
    assert!(bytes[..904].iter().all(|byte| *byte == 7) && bytes[904..].iter().all(|byte| *byte == 0));
    for error in [
        device.write(0, &[IoSlice::new(b"x")]).unwrap_err(),
        device.discard(0, 512).unwrap_err(),
        device.write_zeroes(0, 512).unwrap_err(),
    ] {
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    device.flush().unwrap();
    for (offset, len) in [(8192, 1), (0, 8193), (u64::MAX, 1), (8191, 2)] {
        assert!(device.read(offset, &mut [IoSliceMut::new(&mut vec![0; len])]).is_err(), "{offset} {len}");
    }
}

#[test]
fn discarding_gives_space_back() {
    let folder = Folder::new();
    disk::create(folder.fd(), 16 << 20).unwrap();
    let disk = disk::open(folder.fd()).unwrap();
    disk.write(0, &[IoSlice::new(&vec![1; 8 << 20])]).unwrap();
    disk.flush().unwrap();
    let before = disk::check(folder.fd()).unwrap().allocated;
    disk.discard(4096, (8 << 20) - 4096).unwrap();
    disk.discard(0, 0).unwrap();
    let after = disk::check(folder.fd()).unwrap().allocated;
    assert!(before >= 8 << 20 && after <= 1 << 20, "{before} {after}");
    assert!(disk.discard(16 << 20, 1).is_err());
    assert!(disk.discard(1, u64::MAX).is_err());
}

/// One request, lengths in sectors of 512 bytes.
#[derive(Clone, Debug)]
enum Request {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Zero(u64, u64),
    Read(u64, usize),
}

const SECTORS: u64 = 64;

fn request() -> impl Strategy<Value = Request> {
    let range = (0..SECTORS).prop_flat_map(|start| (Just(start), 0..=SECTORS - start));
    prop_oneof![
        (range.clone(), any::<u8>())
            .prop_map(|((at, len), byte)| Request::Write(at, vec![byte; len as usize * 512])),
        range.clone().prop_map(|(at, len)| Request::Discard(at, len)),
        range.clone().prop_map(|(at, len)| Request::Zero(at, len)),
        range.prop_map(|(at, len)| Request::Read(at, len as usize * 512)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The disk does what an array of bytes would.
    #[test]
    fn a_disk_is_an_array_of_bytes(requests in proptest::collection::vec(request(), 1..40)) {
        let folder = Folder::new();
        disk::create(folder.fd(), SECTORS * 512).unwrap();
        disk::made(folder.fd()).unwrap();
        let mut model = vec![0u8; SECTORS as usize * 512];
        let mut disk = disk::open(folder.fd()).unwrap();
        for request in requests {
            let read = matches!(request, Request::Read(..));
            carry_out(&disk, &mut model, request);
            if read {
                drop(disk);
                disk = disk::open(folder.fd()).unwrap();
            }
        }
        prop_assert_eq!(read(&disk, 0, model.len()), model);
    }

    /// A preview does the same above what was on the disk, and leaves that as it was.
    #[test]
    fn a_preview_changes_nothing(
        before in proptest::collection::vec(request(), 1..10),
        requests in proptest::collection::vec(request(), 1..40),
    ) {
        let folder = Folder::new();
        disk::create(folder.fd(), SECTORS * 512).unwrap();
        disk::made(folder.fd()).unwrap();
        let mut model = vec![0u8; SECTORS as usize * 512];
        let disk = disk::open(folder.fd()).unwrap();
        before.into_iter().for_each(|request| carry_out(&disk, &mut model, request));
        drop(disk);
        let content = model.clone();
        let (description, layer) = disk::open_to_look(folder.fd()).unwrap();
        let scratch = tempfile::tempfile().unwrap();
        let preview = disk::Preview::new(layer, scratch, description.size).unwrap();
        requests.into_iter().for_each(|request| carry_out(&preview, &mut model, request));
        prop_assert_eq!(read(&preview, 0, model.len()), model);
        prop_assert!(matches!(disk::open(folder.fd()), Err(DiskError::InUse)));
        drop(preview);
        prop_assert_eq!(read(&disk::open(folder.fd()).unwrap(), 0, content.len()), content);
    }
}

/// Does the request to the disk and to the model, and compares what is read.
fn carry_out(disk: &dyn BlockBackend, model: &mut [u8], request: Request) {
    match request {
        Request::Write(at, data) => {
            let at = at as usize * 512;
            model[at..at + data.len()].copy_from_slice(&data);
            let (head, tail) = data.split_at(data.len() / 2);
            disk.write(at as u64, &[IoSlice::new(head), IoSlice::new(tail)]).unwrap();
        }
        Request::Discard(at, len) => {
            disk.discard(at * 512, len * 512).unwrap();
            // What is there now is not said, but it stays, and nothing beside it changes.
            let bytes = read(disk, at * 512, len as usize * 512);
            model[at as usize * 512..(at + len) as usize * 512].copy_from_slice(&bytes);
        }
        Request::Zero(at, len) => {
            model[at as usize * 512..(at + len) as usize * 512].fill(0);
            disk.write_zeroes(at * 512, len * 512).unwrap();
        }
        Request::Read(at, len) => {
            let at = at as usize * 512;
            assert_eq!(&read(disk, at as u64, len)[..], &model[at..at + len]);
        }
    }
}

#[test]
fn looking_and_using_exclude_each_other() {
    let folder = Folder::new();
    disk::create(folder.fd(), 1 << 20).unwrap();
    let layer = folder.0.path().join("layer-0.raw");
    std::fs::File::options().write(true).open(&layer).unwrap().write_all(b"half a file system").unwrap();
    let (first, second) =
        (disk::open_to_look(folder.fd()).unwrap(), disk::open_to_look(folder.fd()).unwrap());
    assert_eq!(first.0.size, 1 << 20);
    assert!(matches!(disk::open(folder.fd()), Err(DiskError::InUse)));
    drop((first, second));
    assert!(std::fs::read(&layer).unwrap().starts_with(b"half"), "looking does not make it blank");
    let disk = disk::open(folder.fd()).unwrap();
    assert!(matches!(disk::open_to_look(folder.fd()), Err(DiskError::InUse)));
    drop(disk);
    let report = disk::check(folder.fd()).unwrap();
    assert!(!report.made && report.layers.len() == 1 && report.layers[0].layer.file == "layer-0.raw");
    disk::made(folder.fd()).unwrap();
    assert!(disk::check(folder.fd()).unwrap().made);
}

#[test]
fn a_layer_that_was_cut_while_in_use_is_an_error_and_no_zeros() {
    let folder = Folder::new();
    disk::create(folder.fd(), 1 << 20).unwrap();
    let disk = disk::open(folder.fd()).unwrap();
    disk.write(0, &[IoSlice::new(&vec![7; 1 << 20])]).unwrap();
    let layer = File::options().write(true).open(folder.0.path().join("layer-0.raw")).unwrap();
    layer.set_len(8192).unwrap();
    assert_eq!(read(&disk, 0, 8192), [7; 8192]);
    for (offset, len) in [(4096, 8192), (8192, 512), ((1 << 20) - 512, 512)] {
        let mut bytes = vec![0; len];
        assert!(disk.read(offset, &mut [IoSliceMut::new(&mut bytes)]).is_err(), "{offset} {len}");
    }
}
