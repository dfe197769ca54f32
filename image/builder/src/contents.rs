//! What is in the image: the one list of packages that people choose, and how a lock file is made of it.

use debian::{Arch, Lock, Locked, NpmPackage, PackageIndex, ResolveError, Resolver, Role, Wanted};

/// Besides the essential packages, what the image that runs the build needs: file system tools for the agent, modules.
const STAGE1: &[&str] = &["e2fsprogs", "kmod", "mount"];

/// What the user finds in a sandbox.
const INSTALL: &[&str] = &[
    // containers
    "docker.io",
    "docker-cli",
    "docker-buildx",
    "docker-compose",
    "containerd",
    "runc",
    "iptables",
    // languages and building
    "python3",
    "python3-venv",
    "python3-pip",
    "gcc",
    "g++",
    "libc6-dev",
    "make",
    "pkg-config",
    "patch",
    "libstdc++6",
    // working with sources and data
    "git",
    "ripgrep",
    "jq",
    "less",
    "nano",
    "vim-tiny",
    "file",
    "xz-utils",
    "zstd",
    "bzip2",
    "unzip",
    "zip",
    // the network
    "ca-certificates",
    "curl",
    "wget",
    "openssh-client",
    "iproute2",
    "iputils-ping",
    "netbase",
    // the system
    "apt",
    "sudo",
    "procps",
    "psmisc",
    "tzdata",
    "bash-completion",
];

/// The kernel's metapackage; it depends on the kernel itself.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Makes a lock of what the archive has now.
///
/// # Errors
/// If something on the list does not exist or contradicts the rest.
pub fn make_lock(arch: Arch, index: &PackageIndex, npm: Vec<NpmPackage>) -> Result<Lock, ResolveError> {
    let stage1 = Resolver::new(index).resolve(&Wanted { roots: STAGE1, essential: true, without: &[] })?;
    let roots: Vec<&str> = STAGE1.iter().chain(INSTALL).copied().collect();
    let all = Resolver::new(index).resolve(&Wanted { roots: &roots, essential: true, without: &[] })?;

    let in_stage1 = |name: &str| stage1.packages.iter().any(|package| package.name == name);
    let mut packages: Vec<Locked> =
        stage1.packages.iter().map(|package| Locked::new(package, Role::Stage1)).collect();
    let rest = all.packages.iter().filter(|package| !in_stage1(&package.name));
    packages.extend(rest.map(|package| Locked::new(package, Role::Install)));
    packages.push(kernel(index)?);
    Ok(Lock { arch, packages, npm })
}

fn kernel(index: &PackageIndex) -> Result<Locked, ResolveError> {
    let missing =
        || ResolveError::Missing { needed_by: "the image".to_owned(), dependency: KERNEL.to_owned() };
    let meta = index.get(KERNEL).ok_or_else(missing)?;
    let image =
        meta.depends.iter().flatten().find(|one| one.name.starts_with("linux-image-")).ok_or_else(missing)?;
    let package = index.get(&image.name).filter(|package| package.is(image)).ok_or_else(missing)?;
    Ok(Locked::new(package, Role::Kernel))
}
