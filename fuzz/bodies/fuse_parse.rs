//! Any bytes as a FUSE request: what parses keeps the promises of its types.

use fuse_wire::{Name, Operation, Request};

/// One input: the first byte says how much of the rest counts as a write's payload.
pub(crate) fn run(data: &[u8]) {
    let Some((payload, message)) = data.split_first() else { return };
    let Ok(request) = Request::parse(message, usize::from(*payload) << 4) else { return };
    match request.operation {
        Operation::Lookup { name }
        | Operation::Symlink { name, .. }
        | Operation::Mknod { name, .. }
        | Operation::Mkdir { name, .. }
        | Operation::Unlink { name }
        | Operation::Rmdir { name }
        | Operation::Link { name, .. }
        | Operation::Create { name, .. } => check_name(name),
        Operation::Rename { name, new_name, .. } => {
            check_name(name);
            check_name(new_name);
        }
        Operation::Write { size, offset, .. } => {
            assert!(size as usize <= usize::from(*payload) << 4 && size <= fuse_wire::MAX_TRANSFER);
            assert!(i64::try_from(offset + u64::from(size)).is_ok());
        }
        Operation::Read { size, offset, .. } => {
            assert!(size <= fuse_wire::MAX_TRANSFER && i64::try_from(offset + u64::from(size)).is_ok());
        }
        Operation::Fallocate { offset, length, .. } => {
            assert!(length > 0 && i64::try_from(offset + length).is_ok());
        }
        Operation::CopyFileRange { from_offset, to_offset, length, .. } => {
            assert!(i64::try_from(from_offset + length).is_ok() && i64::try_from(to_offset + length).is_ok());
        }
        Operation::BatchForget { nodes } => assert!(nodes.len() * 16 <= message.len()),
        Operation::SetXattr { name, value, .. } => {
            assert!((1..=255).contains(&name.count_bytes()) && value.len() <= message.len());
        }
        Operation::SetAttr { changes } => {
            assert!(changes.mode.is_none_or(|mode| mode <= 0o7777));
            assert!(changes.size.is_none_or(|size| i64::try_from(size).is_ok()));
        }
        _ => {}
    }
}

fn check_name(name: Name<'_>) {
    let bytes = name.as_bytes();
    assert!((1..=255).contains(&bytes.len()) && bytes != b"." && bytes != b"..");
    assert!(!bytes.contains(&b'/') && !bytes.contains(&0));
}
