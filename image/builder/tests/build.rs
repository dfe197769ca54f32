//! A build of made-up packages, with the guest's part played by the test: what the guest is given, and what is made of what it says.
//! The real thing, with a machine, is what `viv run` does first, and `cargo run -p vs-tcg -- --setup` measures.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use debian::Role;
use erofs::Image;
use fetch::Silent;
use image_builder::{Boot, BuildError, BuilderVm, Inputs, Package, VmError, build, serial};

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(if path.starts_with("usr/bin") || path.contains("/bin/") { 0o755 } else { 0o644 });
        header.set_mtime(1_600_000_000);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn deb(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, body) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", xz(&tar(&[]))),
        ("data.tar.xz", xz(&tar(files))),
    ] {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", body.len()).as_bytes(),
        );
        out.extend(&body);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}

fn tgz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar(files)).unwrap();
    encoder.finish().unwrap()
}

fn bzimage(elf: &[u8]) -> Vec<u8> {
    let payload = xz(elf);
    let mut image = vec![0; 1536];
    image[0x1f1] = 2;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend(payload);
    image
}

fn inputs(folder: &Path) -> Inputs {
    let save = |name: &str, bytes: Vec<u8>| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let module = xz(b"\x7fELF module");
    let kernel = deb(&[
        ("./boot/vmlinuz-6.1-test", &bzimage(b"\x7fELF kernel")),
        ("./usr/lib/modules/6.1-test/kernel/fs/erofs.ko.xz", &module),
    ]);
    let packages = [
        (
            "base",
            Role::Stage1,
            deb(&[("./usr/bin/sh", b"shell"), ("./usr/share/man/man1/sh.1.gz", b"manual")]),
        ),
        ("tool", Role::Install, deb(&[("./usr/bin/tool", b"tool")])),
        ("linux", Role::Kernel, kernel),
    ];
    let package = |(name, role, bytes): (&str, Role, Vec<u8>)| Package {
        name: name.to_owned(),
        role,
        file: save(&format!("{name}.deb"), bytes),
    };
    Inputs {
        packages: packages.into_iter().map(package).collect(),
        node: save(
            "node.tgz",
            tgz(&[("package/bin/node", b"node!"), ("package/share/man/man1/node.1", b"x")]),
        ),
        npm: save("npm.tgz", tgz(&[("package/bin/npm-cli.js", b"npm"), ("package/docs/x.html", b"x")])),
        uuid: [3; 16],
    }
}

/// Plays the guest: looks at its disks, says `lines`, writes an archive of `files`.
struct Guest {
    lines: Vec<&'static str>,
    files: Vec<(&'static str, &'static [u8])>,
    /// Whether the host had no room for all that it wrote.
    full: bool,
}

fn disk(boot: &Boot<'_>, serial: &str) -> PathBuf {
    boot.disks.iter().find(|disk| disk.serial == serial).unwrap().file.clone()
}

fn read(image: &mut Image<File>, path: &str) -> Vec<u8> {
    let found = image.find(path.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is missing"));
    let mut bytes = Vec::new();
    image.contents(&found).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

impl BuilderVm for Guest {
    fn run(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> Result<(), VmError> {
        assert_eq!(boot.kernel.release, "6.1-test");
        assert_eq!(std::fs::read(&boot.kernel.elf).unwrap(), b"\x7fELF kernel");
        assert!(boot.kernel.modules.join("kernel/fs/erofs.ko.xz").is_file());
        assert!(boot.cmdline.contains("viv.script=viv-script"));

        let stage1 = disk(boot, serial::BASE);
        assert_eq!(std::fs::metadata(&stage1).unwrap().len() % (2 << 20), 0);
        let mut stage1 = Image::open(File::open(stage1).unwrap()).unwrap();
        assert_eq!(read(&mut stage1, "usr/bin/sh"), b"shell");
        assert_eq!(read(&mut stage1, "usr/lib/modules/6.1-test/kernel/fs/erofs.ko"), b"\x7fELF module");
        for absent in ["usr/share/man/man1/sh.1.gz", "boot/vmlinuz-6.1-test", "usr/bin/tool"] {
            assert_eq!(stage1.find(absent.as_bytes()).unwrap(), None, "{absent}");
        }
        let mut packages = Image::open(File::open(disk(boot, serial::INPUT)).unwrap()).unwrap();
        assert_eq!(read(&mut packages, "stage1"), b"base.deb\n");
        assert_eq!(read(&mut packages, "install"), b"tool.deb\n");
        let plain = read(&mut packages, "debs/tool.deb");
        let mut data = Vec::new();
        debian::Deb::open(&plain[..]).unwrap().contents("data.tar").unwrap().read_to_end(&mut data).unwrap();
        assert_eq!(data, tar(&[("./usr/bin/tool", b"tool")]));

        let script = std::fs::read(disk(boot, serial::SCRIPT)).unwrap();
        assert!(script.starts_with(b"#!/bin/sh\n") && script.len().is_multiple_of(4096));
        let mut output = File::options().write(true).open(disk(boot, serial::OUTPUT)).unwrap();
        output.write_all(&tar(&self.files)).unwrap();
        self.lines.iter().for_each(|text| line(text));
        if self.full { Err(VmError::NoRoom) } else { Ok(()) }
    }
}

const WHOLE: [(&str, &[u8]); 12] = [
    ("./usr/bin/bash", b"bash"),
    ("./usr/bin/sudo", b""),
    ("./usr/sbin/dockerd", b""),
    ("./usr/bin/docker", b""),
    ("./usr/sbin/mke2fs", b""),
    ("./usr/bin/git", b""),
    ("./usr/bin/gcc", b""),
    ("./usr/bin/python3", b""),
    ("./home/agent/", b""),
    ("./etc/passwd", b""),
    ("./etc/ssl/certs/ca-certificates.crt", b""),
    ("./var/lib/dpkg/status", b""),
];

#[test]
fn packages_become_a_base_image() {
    let (sources, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let guest = Guest {
        lines: vec![
            "noise",
            "viv-build: unpacking base\r",
            "viv-build: configuring base",
            "viv-build: complete\r",
            "VIV-EXIT 0",
        ],
        files: WHOLE.to_vec(),
        full: false,
    };
    let output = build(&inputs(sources.path()), folder.path(), &guest, &Silent).unwrap();
    assert_eq!(std::fs::metadata(&output.base).unwrap().len() % (2 << 20), 0);
    let mut image = Image::open(File::open(&output.base).unwrap()).unwrap();
    assert_eq!(read(&mut image, "usr/bin/bash"), b"bash");
    assert_eq!(read(&mut image, "usr/local/bin/node"), b"node!");
    assert_eq!(read(&mut image, "usr/local/lib/node_modules/npm/bin/npm-cli.js"), b"npm");
    let npm = image.find(b"usr/local/bin/npm").unwrap().unwrap();
    assert_eq!(image.link_target(&npm).unwrap(), b"../lib/node_modules/npm/bin/npm-cli.js");
    assert_eq!(image.find(b"usr/bin/bash").unwrap().unwrap().mtime, 1_600_000_000);
    assert!(!folder.path().join("build").exists(), "nothing intermediate is left");
}

#[test]
fn a_failing_guest_is_quoted() {
    let (sources, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let guest = Guest {
        lines: vec![
            "viv-build: configuring tool",
            "viv-build: failed dpkg",
            "noise",
            "tool: no such thing\r",
            "VIV-EXIT 1",
        ],
        files: WHOLE.to_vec(),
        full: false,
    };
    match build(&inputs(sources.path()), folder.path(), &guest, &Silent) {
        Err(error @ BuildError::Guest { .. }) => {
            assert_eq!(error.to_string(), "making the base image failed (dpkg): tool: no such thing")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_that_becomes_full_is_the_cause_of_what_the_guest_says() {
    let (sources, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lines = vec!["viv-build: failed dpkg", "cannot write: Input/output error"];
    let guest = Guest { lines, files: WHOLE.to_vec(), full: true };
    let error = build(&inputs(sources.path()), folder.path(), &guest, &Silent).unwrap_err();
    assert!(matches!(error, BuildError::NoRoom), "{error:?}");
    assert!(error.to_string().contains("disk is full"));
}

#[test]
fn a_guest_that_stops_early_or_leaves_things_out_gives_no_image() {
    let (sources, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let early = Guest { lines: vec!["viv-build: packing"], files: WHOLE.to_vec(), full: false };
    assert!(matches!(
        build(&inputs(sources.path()), folder.path(), &early, &Silent),
        Err(BuildError::Guest { .. })
    ));
    let partial = Guest { lines: vec!["viv-build: complete"], files: WHOLE[1..].to_vec(), full: false };
    match build(&inputs(sources.path()), folder.path(), &partial, &Silent) {
        Err(BuildError::Incomplete(what)) => assert_eq!(what, "/usr/bin/bash"),
        other => panic!("{other:?}"),
    }
}
