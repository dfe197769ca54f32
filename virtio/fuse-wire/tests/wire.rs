//! The wire alone, against a file system that answers everything and remembers what it was asked.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Mutex;
use std::time::Duration;

use fuse_wire::client::{Call, Client};
use fuse_wire::{
    Access, Attributes, Context, DirectoryBuffer, Entry, Errno, FallocateMode, FileKind, FileStatus,
    FileSystem, Handle, Name, NodeId, OpenFlags, OpenReply, Operation, RenameMode, Request, RequestHandler,
    RestoreError, Result, SeekTarget, Server, SetAttributes, SetTime, Settings, SpaceReport, Timestamp,
    XattrMode,
};
use proptest::prelude::*;

/// Answers everything.
#[derive(Default)]
struct Agreeable {
    asked: Mutex<Vec<String>>,
}

impl Agreeable {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

fn status() -> FileStatus {
    let at = |seconds| Timestamp { seconds, nanoseconds: 5 };
    FileStatus {
        inode: 11,
        size: 22,
        blocks: 33,
        atime: at(44),
        mtime: at(55),
        ctime: at(66),
        kind: FileKind::Regular,
        permissions: 0o640,
        links: 77,
        uid: 88,
        gid: 99,
        block_size: 4096,
    }
}

fn attributes() -> Attributes {
    Attributes { status: status(), valid: Duration::from_millis(1500) }
}

fn entry() -> Entry {
    Entry { node: NodeId(9), generation: 8, name_valid: Duration::from_secs(7), attributes: attributes() }
}

impl FileSystem for Agreeable {
    fn init(&self) -> Settings {
        Settings::default()
    }
    fn destroy(&self) {}
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.note(format!("lookup {} {name:?}", parent.0));
        Ok(entry())
    }
    fn forget(&self, node: NodeId, count: u64) {
        self.note(format!("forget {} {count}", node.0));
    }
    fn getattr(&self, _: NodeId, handle: Option<Handle>) -> Result<Attributes> {
        self.note(format!("getattr {handle:?}"));
        Ok(attributes())
    }
    fn setattr(&self, _: NodeId, changes: &SetAttributes) -> Result<Attributes> {
        self.note(format!("setattr {changes:?}"));
        Ok(attributes())
    }
    fn readlink(&self, _: NodeId) -> Result<Vec<u8>> {
        Ok(vec![b'l'; 4095])
    }
    fn symlink(&self, _: &Context, _: NodeId, name: Name<'_>, target: &CStr) -> Result<Entry> {
        self.note(format!("symlink {name:?} {target:?}"));
        Ok(entry())
    }
    fn mknod(&self, _: &Context, _: NodeId, _: Name<'_>, _: u32) -> Result<Entry> {
        Ok(entry())
    }
    fn mkdir(&self, cx: &Context, _: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        self.note(format!("mkdir {} {} {name:?} {mode:o}", cx.uid, cx.gid));
        Ok(entry())
    }
    fn unlink(&self, _: NodeId, _: Name<'_>) -> Result<()> {
        Ok(())
    }
    fn rmdir(&self, _: NodeId, _: Name<'_>) -> Result<()> {
        Ok(())
    }
    fn rename(&self, _: NodeId, a: Name<'_>, to: NodeId, b: Name<'_>, mode: RenameMode) -> Result<()> {
        self.note(format!("rename {a:?} {} {b:?} {mode:?}", to.0));
        Ok(())
    }
    fn link(&self, _: NodeId, _: NodeId, _: Name<'_>) -> Result<Entry> {
        Ok(entry())
    }
    fn open(&self, _: NodeId, flags: OpenFlags) -> Result<OpenReply> {
        self.note(format!("open {flags:?}"));
        Ok(OpenReply { handle: Handle(3), keep_cache: true })
    }
    fn create(
        &self,
        _: &Context,
        _: NodeId,
        _: Name<'_>,
        _: u32,
        _: OpenFlags,
    ) -> Result<(Entry, OpenReply)> {
        Ok((entry(), OpenReply { handle: Handle(3), keep_cache: false }))
    }
    fn read(&self, _: Handle, offset: u64, into: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut done = 0;
        for slice in into.iter_mut() {
            for byte in slice.iter_mut() {
                *byte = (offset as u8).wrapping_add(done as u8);
                done += 1;
            }
        }
        Ok(done)
    }
    fn write(&self, _: Handle, offset: u64, append: bool, from: &[IoSlice<'_>]) -> Result<usize> {
        let bytes: Vec<u8> = from.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.note(format!("write {offset} {append} {}", bytes.escape_ascii()));
        Ok(bytes.len())
    }
    fn statfs(&self, _: NodeId) -> Result<SpaceReport> {
        Ok(SpaceReport { blocks: 5, name_max: 255, ..SpaceReport::default() })
    }
    fn release(&self, _: Handle) -> Result<()> {
        Ok(())
    }
    fn flush(&self, _: Handle) -> Result<()> {
        Ok(())
    }
    fn fsync(&self, _: Handle, _: bool) -> Result<()> {
        Ok(())
    }
    fn setxattr(&self, _: NodeId, name: &CStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.note(format!("setxattr {name:?} {} {mode:?}", value.escape_ascii()));
        Ok(())
    }
    fn getxattr(&self, _: NodeId, _: &CStr) -> Result<Vec<u8>> {
        Ok(b"value".to_vec())
    }
    fn listxattr(&self, _: NodeId) -> Result<Vec<u8>> {
        Ok(b"user.a\0".to_vec())
    }
    fn removexattr(&self, _: NodeId, _: &CStr) -> Result<()> {
        Ok(())
    }
    fn opendir(&self, _: NodeId) -> Result<OpenReply> {
        Ok(OpenReply { handle: Handle(4), keep_cache: false })
    }
    fn readdir(&self, _: Handle, offset: u64, into: &mut DirectoryBuffer) -> Result<()> {
        let mut next = offset + 1;
        while next < 100 && into.push(next, next, None, b"name", Some(&entry())) {
            next += 1;
        }
        Ok(())
    }
    fn releasedir(&self, _: Handle) -> Result<()> {
        Ok(())
    }
    fn fsyncdir(&self, _: Handle, _: bool) -> Result<()> {
        Ok(())
    }
    fn access(&self, _: NodeId, _: u32) -> Result<()> {
        Ok(())
    }
    fn fallocate(&self, _: Handle, _: u64, _: u64, _: FallocateMode) -> Result<()> {
        Ok(())
    }
    fn seek(&self, _: Handle, offset: u64, _: SeekTarget) -> Result<u64> {
        Ok(offset)
    }
    fn copy_file_range(&self, _: Handle, _: u64, _: Handle, _: u64, length: u64) -> Result<usize> {
        Ok(length as usize)
    }
    fn syncfs(&self, _: NodeId) -> Result<()> {
        Ok(())
    }
    fn save(&self) -> Vec<u8> {
        b"mine".to_vec()
    }
    fn restore(&self, state: &[u8]) -> std::result::Result<(), RestoreError> {
        self.note(format!("restore {}", state.escape_ascii()));
        if state == b"mine" { Ok(()) } else { Err(RestoreError::Damaged("not mine")) }
    }
}

fn started() -> Server<Agreeable> {
    let server = Server::new(Agreeable::default());
    Client::start(&server).unwrap();
    server
}

fn asked(server: &Server<Agreeable>) -> String {
    server.file_system().asked.lock().unwrap().pop().unwrap()
}

#[test]
fn replies_have_the_bytes_of_the_protocol() {
    let server = started();
    let client = Client::new(&server);
    let reply = client.call(1, NodeId(1), b"name\0", 128).unwrap();
    let words = |range: std::ops::Range<usize>| -> Vec<u64> {
        reply[range].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let halves = |range: std::ops::Range<usize>| -> Vec<u32> {
        reply[range].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    // fuse_entry_out: node, generation, entry_valid, attr_valid, their nanoseconds, then fuse_attr.
    assert_eq!(words(0..32), [9, 8, 7, 1]);
    assert_eq!(halves(32..40), [0, 500_000_000]);
    assert_eq!(words(40..88), [11, 22, 33, 44, 55, 66]);
    assert_eq!(halves(88..128), [5, 5, 5, 0o100640, 77, 88, 99, 0, 4096, 0]);
    let attr = client.call(3, NodeId(1), &[0; 16], 104).unwrap();
    assert_eq!(attr.len(), 104);
    assert_eq!(&attr[16..], &reply[40..]);
    assert_eq!(
        client.call(14, NodeId(1), &[0; 8], 16).unwrap(),
        [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(client.call(17, NodeId(1), &[], 80).unwrap().len(), 80);
    assert_eq!(
        client
            .call(
                46,
                NodeId(1),
                &[3; 8].iter().chain(&[0; 8]).chain(&[3, 0, 0, 0, 0, 0, 0, 0]).copied().collect::<Vec<u8>>(),
                8
            )
            .unwrap(),
        [0; 8]
    );
}

#[test]
fn requests_arrive_as_they_were_meant() {
    let server = started();
    let client = Client::new(&server);
    client.uid.set(5);
    client.gid.set(6);
    client.mkdir(NodeId(1), b"d", 0o107755).unwrap();
    assert_eq!(asked(&server), "mkdir 5 6 \"d\" 7755");
    client.rename(NodeId(2), b"a", NodeId(3), b"b", 2).unwrap();
    assert_eq!(asked(&server), "rename \"a\" 3 \"b\" Exchange");
    client.call(12, NodeId(2), b"\x03\0\0\0\0\0\0\0a\0b\0", 0).unwrap();
    assert_eq!(asked(&server), "rename \"a\" 3 \"b\" Replace");
    client.write(Handle(3), 7, b"payload", 0o2000).unwrap();
    assert_eq!(asked(&server), "write 7 true payload");
    client.setxattr(NodeId(1), b"user.x", b"v", 2).unwrap();
    assert_eq!(asked(&server), "setxattr \"user.x\" v Replace");
    client.getattr(NodeId(1), Some(Handle(0))).unwrap();
    assert_eq!(asked(&server), "getattr Some(Handle(0))");
    assert!(client.forget(NodeId(7), 3));
    assert_eq!(asked(&server), "forget 7 3");
    client.open(NodeId(1), 0o4010000 | 0o2001).unwrap();
    assert!(asked(&server).contains("access: Write, truncate: false, exclusive: false, synchronous: true"));
    assert_eq!(client.open(NodeId(1), 3), Err(Errno::INVAL));
    assert_eq!(client.readlink(NodeId(1)).unwrap().len(), 4095);
    // Written back from the page cache: the place counts, whatever the handle's flags.
    let mut args = [0u8; 41];
    args[16] = 1; // size
    args[20] = 1; // FUSE_WRITE_CACHE
    args[33] = 0x04; // O_APPEND
    args[40] = b'x';
    client.call(16, NodeId(1), &args, 8).unwrap();
    assert_eq!(asked(&server), "write 0 false x");
}

#[test]
fn set_times_are_bounded() {
    let parse = |valid: u32, seconds: i64, nanoseconds: u32| {
        let mut body = vec![0u8; 88];
        body[0..4].copy_from_slice(&valid.to_le_bytes());
        body[40..48].copy_from_slice(&seconds.to_le_bytes());
        body[60..64].copy_from_slice(&nanoseconds.to_le_bytes());
        let message = Call::new(4, NodeId(1), &body).encode(1, 0, 0);
        Request::parse(&message, 0).map(|request| match request.operation {
            Operation::SetAttr { changes } => changes.mtime,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(
        parse(1 << 5, -1, 999_999_999),
        Ok(Some(SetTime::At { seconds: -1, nanoseconds: 999_999_999 }))
    );
    assert_eq!(parse(1 << 5, 0, 1_000_000_000), Err(Errno::INVAL));
    assert_eq!(parse(1 << 5, 0, 0x3fff_ffff), Err(Errno::INVAL), "UTIME_NOW of the host's kernel");
    assert_eq!(parse(1 << 5 | 1 << 8, 0, 7), Ok(Some(SetTime::Now)));
    assert_eq!(parse(1 << 8, 0, 7), Ok(Some(SetTime::Now)));
    assert_eq!(parse(0, 0, 0), Ok(None));
}

#[test]
fn messages_that_lie_about_their_length_are_refused() {
    let server = started();
    let send = |message: &[u8], room: usize| {
        let mut reply = vec![0xee; room];
        let used = server.handle(&[IoSlice::new(message)], &mut [IoSliceMut::new(&mut reply)]);
        let error = reply.get(4..8).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
        (used, error)
    };
    let good = Call::new(1, NodeId(1), b"name\0").encode(1, 0, 0);
    assert_eq!(send(&good, 144), (144, Some(0)));
    for len in 0..good.len() {
        let (used, error) = send(&good[..len], 144);
        if len < 40 {
            assert_eq!(used, 0, "{len}");
        } else {
            assert_eq!((used, error), (16, Some(-22)), "{len}");
        }
    }
    for claim in [0u32, 39, 46, u32::MAX] {
        let mut message = good.clone();
        message[0..4].copy_from_slice(&claim.to_le_bytes());
        assert_eq!(send(&message, 144), (16, Some(-22)), "{claim}");
    }
    // Bytes after the claimed end are not looked at.
    let mut message = good.clone();
    message.extend_from_slice(b"/../x\0");
    assert_eq!(send(&message, 144), (144, Some(0)));
    // No room for the answer: an error if that fits, silence if not; never more than there is.
    assert_eq!(send(&good, 143), (16, Some(-34)));
    assert_eq!(send(&good, 16), (16, Some(-34)));
    assert_eq!(send(&good, 15), (0, Some(-286331154)));
    let huge = Call::new(21, NodeId(1), &vec![b'x'; 80_000]).encode(1, 0, 0);
    assert_eq!(send(&huge, 144), (16, Some(-7)));
}

#[test]
fn a_read_fills_what_there_is_room_for() {
    let server = started();
    let client = Client::new(&server);
    let mut args = [0u8; 40];
    args[16..20].copy_from_slice(&1000u32.to_le_bytes());
    for room in [0usize, 1, 7, 999, 1000, 1001, 5000] {
        let bytes = client.call(15, NodeId(1), &args, room).unwrap();
        assert_eq!(bytes, (0..room.min(1000)).map(|n| n as u8).collect::<Vec<u8>>(), "{room}");
    }
    let listed = client.readdir(Handle(4), 0, 200, false).unwrap();
    assert_eq!(listed.len(), 200 / 32);
    let listed = client.readdir(Handle(4), 90, 4096, true).unwrap();
    assert_eq!(listed.len(), 9);
    assert_eq!(listed[0].entry.unwrap().node, NodeId(9));
}

#[test]
fn attribute_sizes_are_told_before_values() {
    let server = started();
    let client = Client::new(&server);
    assert_eq!(client.call(22, NodeId(1), b"\0\0\0\0\0\0\0\0user.x\0", 8).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(client.call(22, NodeId(1), b"\x04\0\0\0\0\0\0\0user.x\0", 8), Err(Errno::RANGE));
    assert_eq!(client.call(22, NodeId(1), b"\x05\0\0\0\0\0\0\0user.x\0", 8).unwrap(), b"value");
    assert_eq!(client.call(23, NodeId(1), b"\0\0\0\0\0\0\0\0", 8).unwrap()[0], 7);
    assert_eq!(client.setxattr(NodeId(1), &[b'n'; 256], b"", 0), Err(Errno::RANGE));
    assert_eq!(client.setxattr(NodeId(1), b"", b"", 0), Err(Errno::INVAL));
}

#[test]
fn a_newer_kernel_is_told_our_version() {
    let server = Server::new(Agreeable::default());
    let client = Client::new(&server);
    let mut body = vec![0u8; 64];
    body[0] = 8;
    let reply = client.call(26, NodeId(0), &body, 64).unwrap();
    assert_eq!((reply[0], reply[4]), (7, 40));
    assert_eq!(client.readlink(NodeId(1)), Err(Errno::IO), "no session yet");
    // Older kernels send a shorter INIT.
    let mut body = vec![0u8; 16];
    (body[0], body[4]) = (7, 31);
    client.call(26, NodeId(0), &body, 64).unwrap();
    client.readlink(NodeId(1)).unwrap();
}

#[test]
fn access_modes_say_what_they_allow() {
    assert!(Access::Read.reads() && !Access::Read.writes());
    assert!(!Access::Write.reads() && Access::Write.writes());
    assert!(Access::ReadWrite.reads() && Access::ReadWrite.writes());
}

#[test]
fn a_session_is_gone_on_with_elsewhere() {
    let before = started();
    let state = before.save();
    let after = Server::new(Agreeable::default());
    let client = Client::new(&after);
    assert_eq!(client.readlink(NodeId(1)), Err(Errno::IO));
    after.restore(&state).unwrap();
    assert_eq!(asked(&after), "restore mine");
    client.readlink(NodeId(1)).unwrap();
    for (bad, error) in [
        (&b""[..], RestoreError::Damaged("it is too short")),
        (b"\x01", RestoreError::Damaged("it is too short")),
        (b"\x01\x02mine", RestoreError::Damaged("there is half a session")),
        (b"\x09\x01mine", RestoreError::Version(9)),
        (b"\x01\x01yours", RestoreError::Damaged("not mine")),
    ] {
        assert_eq!(after.restore(bad), Err(error));
        assert_eq!(client.readlink(NodeId(1)), Err(Errno::IO), "no session after a failure");
    }
    after.restore(&Server::new(Agreeable::default()).save()).unwrap();
    assert_eq!(client.readlink(NodeId(1)), Err(Errno::IO), "saved before the guest began one");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the bytes and however they are cut: no panic, no byte written beyond what is told, names are single components.
    #[test]
    fn any_bytes_are_answered_within_bounds(
        opcode in prop_oneof![0u32..60, any::<u32>()],
        body in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'.'), any::<u8>()], 0..200),
        claim in proptest::option::of(any::<u32>()),
        cut in 0usize..240,
        room in 0usize..300,
        reply_cut in 0usize..300,
    ) {
        let server = started();
        let mut message = Call::new(opcode, NodeId(1), &body).encode(77, 1, 2);
        if let Some(claim) = claim {
            message[0..4].copy_from_slice(&claim.to_le_bytes());
        }
        if let Ok(request) = Request::parse(&message, 0)
            && let Operation::Lookup { name } | Operation::Unlink { name } | Operation::Create { name, .. } = request.operation
        {
            let name = name.as_bytes();
            prop_assert!(!name.is_empty() && name.len() < 256 && !name.contains(&b'/') && name != b"." && name != b"..");
        }
        let (first, second) = message.split_at(cut.min(message.len()));
        let mut reply = vec![0xee; room];
        let (head, tail) = reply.split_at_mut(reply_cut.min(room));
        let used = server.handle(
            &[IoSlice::new(first), IoSlice::new(second)],
            &mut [IoSliceMut::new(head), IoSliceMut::new(tail)],
        );
        prop_assert!(used <= room);
        prop_assert!(used == 0 || used >= 16);
        if used > 0 {
            prop_assert_eq!(u32::from_le_bytes(reply[0..4].try_into().unwrap()) as usize, used);
            prop_assert_eq!(u64::from_le_bytes(reply[8..16].try_into().unwrap()), 77);
        }
        prop_assert!(reply[used..].iter().all(|byte| *byte == 0xee) || opcode == 15);
    }
}
