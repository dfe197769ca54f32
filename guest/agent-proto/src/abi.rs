//! The guest's ABI: every number and name that both the machine and the guest must agree on, in one table.
//!
//! These are fixed: a saved sandbox, its disk and the containers in it remember them. Add, never change. The machine places devices by
//! this table, the agent finds them by it, the gateway serves these addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The guest's vsock context id. The same in every sandbox: each has a vsock device of its own.
pub const GUEST_CID: u32 = 3;
/// The host's vsock context id (virtio 1.3 §5.10.4).
pub const HOST_CID: u32 = 2;
/// The vsock port on which the agent listens, for control and session connections alike. The host dials.
pub const AGENT_PORT: u32 = 1024;

/// The PCI device numbers on bus 0. Function 0 each.
pub mod slot {
    /// The host bridge.
    pub const HOST_BRIDGE: u8 = 0;
    /// virtio-console (`hvc0`): the guest's console from the moment its driver is there, for the kernel's messages, the
    /// agent's lines and a script's output. What comes before goes over the serial port.
    pub const CONSOLE: u8 = 1;
    /// virtio-rng.
    pub const ENTROPY: u8 = 2;
    /// virtio-vsock.
    pub const VSOCK: u8 = 3;
    /// The base image: virtio-pmem, or virtio-blk with the serial [`super::serial::BASE`].
    pub const BASE: u8 = 4;
    /// The writable disk, virtio-blk with the serial [`super::serial::DISK`].
    pub const DISK: u8 = 5;
    /// virtio-fs with the shared folders.
    pub const FS: u8 = 6;
    /// virtio-net towards the gateway.
    pub const NET: u8 = 7;
    /// virtio-balloon or virtio-mem.
    pub const MEMORY: u8 = 8;
    /// Block devices that only builds, tests and benchmarks have: script, packages, output.
    pub const EXTRA: [u8; 4] = [9, 10, 11, 12];
    /// The first number that is kept free for hot-plug.
    pub const FIRST_SPARE: u8 = 16;
}

/// Serials of virtio-blk devices (at most 20 bytes, virtio 1.3 §5.2.6). The agent goes by these, never by order.
pub mod serial {
    /// The read-only EROFS base.
    pub const BASE: &str = "viv-base";
    /// The sandbox's writable disk.
    pub const DISK: &str = "viv-disk";
    /// A shell script, padded with NULs to whole sectors (see [`super::cmdline::SCRIPT`]).
    pub const SCRIPT: &str = "viv-script";
    /// Input of a build, such as packages.
    pub const INPUT: &str = "viv-input";
    /// Output of a build.
    pub const OUTPUT: &str = "viv-output";
}

/// The tag of the virtio-fs device.
pub const FS_TAG: &str = "vivarium";
/// Where the agent mounts that device. Each share hangs there under its name and is bound to its path.
pub const FS_ROOT: &str = "/run/vivarium/shares";

/// The guest's address on the link to the gateway.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The gateway's address on that link, the guest's router and name server.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Prefix length of the link.
pub const LINK_PREFIX_V4: u8 = 30;
/// The guest's IPv6 address on the link.
pub const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 2);
/// The gateway's IPv6 address on the link.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 1);
/// Prefix length of the IPv6 link.
pub const LINK_PREFIX_V6: u8 = 126;
/// The largest packet on the link in bytes: a multiple of 8 just below IPv4's limit, so that a segment is worth its way through the rings
/// even without offloads.
pub const LINK_MTU: u16 = 65_520;
/// The pool of synthetic addresses, one per name; the link is its first /30. Network and prefix length. RFC 2544's range.
pub const SYNTHETIC_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The same for IPv6, from the unique local range.
pub const SYNTHETIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 0), 64);
/// The guest's MAC address: locally administered, the same in every sandbox (each link is private).
pub const GUEST_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x02];
/// The gateway's MAC address.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x01];

/// The user that commands run as unless asked otherwise.
pub const AGENT_USER: &str = "agent";
/// That user's id and its group's.
pub const AGENT_UID: u32 = 1000;
/// That user's primary group id.
pub const AGENT_GID: u32 = 1000;
/// That user's home.
pub const AGENT_HOME: &str = "/home/agent";

/// Keys on the kernel command line. A key is followed by `=` and a value without spaces.
pub mod cmdline {
    /// Wall clock when the machine started: seconds since 1970, with an optional fraction (`1763717000.25`).
    pub const TIME: &str = "viv.time";
    /// Run a script as root instead of serving sessions; its output goes to the console, then comes a line `VIV-EXIT code` and power-off.
    /// The value is an absolute path in the root, or the serial of a block device that holds it.
    pub const SCRIPT: &str = "viv.script";
    /// The host name until the control connection sets one.
    pub const HOSTNAME: &str = "viv.hostname";
    /// With `viv.docker=off` no dockerd is started (image building).
    pub const DOCKER: &str = "viv.docker";
    /// `viv.root=disk` keeps the overlay's upper layer on the disk (the default when there is one), `viv.root=memory` in memory.
    pub const ROOT: &str = "viv.root";
    /// `viv.disk=made` says that a file system was made on the disk before: one that looks blank is damaged, and left alone.
    pub const DISK: &str = "viv.disk";
}

/// What PID 1 prints on the console when sessions can be opened, followed by the microseconds since the kernel started.
pub const READY_LINE: &str = "VIV-READY";
/// What PID 1 prints on the console when a script ended, followed by its exit code as a shell has it.
pub const EXIT_LINE: &str = "VIV-EXIT";
/// What PID 1 prints on the console before it gives up, followed by the reason.
pub const PANIC_LINE: &str = "VIV-FAILED";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_fit_the_block_device() {
        for s in [serial::BASE, serial::DISK, serial::SCRIPT, serial::INPUT, serial::OUTPUT] {
            assert!(s.len() <= 20 && s.is_ascii());
        }
    }

    #[test]
    fn link_lies_in_the_synthetic_pools() {
        let mask4 = u32::MAX << (32 - u32::from(SYNTHETIC_V4.1));
        for a in [GUEST_IPV4, GATEWAY_IPV4] {
            assert_eq!(u32::from(a) & mask4, u32::from(SYNTHETIC_V4.0));
        }
        let mask6 = u128::MAX << (128 - u32::from(SYNTHETIC_V6.1));
        for a in [GUEST_IPV6, GATEWAY_IPV6] {
            assert_eq!(u128::from(a) & mask6, u128::from(SYNTHETIC_V6.0));
        }
        assert_eq!(u32::from(GUEST_IPV4) & !3, u32::from(GATEWAY_IPV4) & !3);
    }

    #[test]
    fn slots_do_not_overlap() {
        let mut all = vec![
            slot::HOST_BRIDGE,
            slot::CONSOLE,
            slot::ENTROPY,
            slot::VSOCK,
            slot::BASE,
            slot::DISK,
            slot::FS,
            slot::NET,
            slot::MEMORY,
        ];
        all.extend(slot::EXTRA);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|s| *s < slot::FIRST_SPARE));
    }

    #[test]
    fn macs_are_local_unicast() {
        for mac in [GUEST_MAC, GATEWAY_MAC] {
            assert_eq!(mac[0] & 3, 2);
        }
    }
}
