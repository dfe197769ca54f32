//! Downloads from a small server in the test itself, which can be made to misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fetch::{Cache, Client, Digest, FetchError, FileLock, Item, Outcome, Progress, Silent, Update};

/// What the server does with the n-th request (counted from 0) for `bytes`, asked for from `from` on.
type Behaviour = dyn Fn(usize, u64) -> Answer + Send + Sync;

enum Answer {
    /// Honours the range.
    Range,
    /// Sends everything, whatever was asked for.
    Whole,
    /// Promises everything and sends this many bytes.
    CutAfter(usize),
    /// Sends other bytes of the same length.
    Wrong,
    /// Sends only a status.
    Status(u16),
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    fn start(bytes: Vec<u8>, behaviour: Box<Behaviour>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        let count = AtomicUsize::new(0);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let from = read_request(&stream);
                log.lock().unwrap().push(from);
                let answer = behaviour(count.fetch_add(1, Ordering::SeqCst), from);
                let _ = respond(stream, &bytes, from, &answer);
            }
        });
        Self { url, requests }
    }

    fn item(&self, bytes: &[u8]) -> Item {
        Item {
            urls: vec![self.url.clone()],
            digest: Digest::sha256_of(bytes),
            size: bytes.len() as u64,
            name: "file".to_owned(),
        }
    }

    fn requests(&self) -> Vec<u64> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> u64 {
    let mut from = 0;
    for line in BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    from
}

fn respond(mut stream: TcpStream, bytes: &[u8], from: u64, answer: &Answer) -> std::io::Result<()> {
    let from = usize::try_from(from).unwrap();
    let whole = bytes.len();
    let (status, body) = match answer {
        Answer::Status(status) => (*status, Vec::new()),
        Answer::Range if from > 0 => (206, bytes[from..].to_vec()),
        Answer::Wrong => (200, vec![b'?'; whole]),
        _ => (200, bytes.to_vec()),
    };
    let range = if status == 206 {
        format!("Content-Range: bytes {from}-{}/{whole}\r\n", whole - 1)
    } else {
        String::new()
    };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n",
        body.len()
    )?;
    let end = if let Answer::CutAfter(end) = answer { *end } else { body.len() };
    stream.write_all(&body[..end])
}

fn content() -> Vec<u8> {
    (0..300_000u32).map(|n| (n % 251) as u8).collect()
}

fn fetch(dir: &Path, item: &Item) -> Result<Outcome, FetchError> {
    let cache = Cache::open(dir).unwrap();
    cache
        .fetch_all(&Client::new(), std::slice::from_ref(item), "test", &Silent)
        .map(|mut outcomes| outcomes.remove(0))
}

fn ready(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Ready(path) => std::fs::read(path).unwrap(),
        Outcome::Gone => panic!("gone"),
    }
}

#[test]
fn a_file_is_downloaded_once() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let server = Server::start(bytes.clone(), Box::new(|_, _| Answer::Range));
    assert_eq!(ready(fetch(dir.path(), &server.item(&bytes)).unwrap()), bytes);
    assert_eq!(ready(fetch(dir.path(), &server.item(&bytes)).unwrap()), bytes);
    assert_eq!(server.requests(), [0]);
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let server = Server::start(
        bytes.clone(),
        Box::new(|n, _| if n == 0 { Answer::CutAfter(100_000) } else { Answer::Range }),
    );
    assert_eq!(ready(fetch(dir.path(), &server.item(&bytes)).unwrap()), bytes);
    assert_eq!(server.requests(), [0, 100_000]);
}

#[test]
fn an_interrupted_process_leaves_what_the_next_goes_on_with() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let server = Server::start(bytes.clone(), Box::new(|_, _| Answer::Range));
    let item = server.item(&bytes);
    std::fs::write(dir.path().join(format!("{}.part", item.digest.file_name())), &bytes[..200_000]).unwrap();
    assert_eq!(ready(fetch(dir.path(), &item).unwrap()), bytes);
    assert_eq!(server.requests(), [200_000]);
}

#[test]
fn a_server_without_ranges_will_do() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let server = Server::start(
        bytes.clone(),
        Box::new(|n, _| if n == 0 { Answer::CutAfter(5) } else { Answer::Whole }),
    );
    assert_eq!(ready(fetch(dir.path(), &server.item(&bytes)).unwrap()), bytes);
}

#[test]
fn a_damaged_partial_or_complete_file_is_fetched_again() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let server = Server::start(bytes.clone(), Box::new(|_, _| Answer::Range));
    let item = server.item(&bytes);
    let complete = dir.path().join(item.digest.file_name());
    std::fs::write(dir.path().join(format!("{}.part", item.digest.file_name())), vec![1; 1000]).unwrap();
    assert_eq!(ready(fetch(dir.path(), &item).unwrap()), bytes);
    let mut damaged = bytes.clone();
    damaged[150_000] ^= 1;
    std::fs::write(&complete, damaged).unwrap();
    assert_eq!(ready(fetch(dir.path(), &item).unwrap()), bytes);
    assert_eq!(server.requests(), [1000, 0, 0]);
}

#[test]
fn other_bytes_than_promised_are_never_handed_out() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let once =
        Server::start(bytes.clone(), Box::new(|n, _| if n == 0 { Answer::Wrong } else { Answer::Range }));
    assert_eq!(ready(fetch(dir.path(), &once.item(&bytes)).unwrap()), bytes);

    let dir = tempfile::tempdir().unwrap();
    let always = Server::start(bytes.clone(), Box::new(|_, _| Answer::Wrong));
    assert!(matches!(fetch(dir.path(), &always.item(&bytes)), Err(FetchError::Tampered { .. })));
    assert!(!dir.path().join(always.item(&bytes).digest.file_name()).exists());

    let dir = tempfile::tempdir().unwrap();
    let longer = Server::start([bytes.clone(), b"more".to_vec()].concat(), Box::new(|_, _| Answer::Whole));
    assert!(matches!(fetch(dir.path(), &longer.item(&bytes)), Err(FetchError::Tampered { .. })));
}

#[test]
fn what_is_gone_is_told_apart_and_other_places_are_tried() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let gone = Server::start(Vec::new(), Box::new(|_, _| Answer::Status(404)));
    assert_eq!(fetch(dir.path(), &gone.item(&bytes)).unwrap(), Outcome::Gone);
    let other = Server::start(bytes.clone(), Box::new(|_, _| Answer::Range));
    let item = Item { urls: vec![gone.url.clone(), other.url.clone()], ..other.item(&bytes) };
    assert_eq!(ready(fetch(dir.path(), &item).unwrap()), bytes);
}

#[test]
fn a_busy_server_is_asked_again_and_a_refusing_one_is_not() {
    let (bytes, dir) = (content(), tempfile::tempdir().unwrap());
    let busy = Server::start(
        bytes.clone(),
        Box::new(|n, _| if n == 0 { Answer::Status(503) } else { Answer::Range }),
    );
    assert_eq!(ready(fetch(dir.path(), &busy.item(&bytes)).unwrap()), bytes);
    let dir = tempfile::tempdir().unwrap();
    let refusing = Server::start(Vec::new(), Box::new(|_, _| Answer::Status(403)));
    assert!(matches!(fetch(dir.path(), &refusing.item(&bytes)), Err(FetchError::Network { .. })));
    assert_eq!(refusing.requests().len(), 1);
}

#[test]
fn many_files_come_in_the_order_they_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; 1000 * usize::from(n) + 1]).collect();
    let servers: Vec<Server> =
        files.iter().map(|bytes| Server::start(bytes.clone(), Box::new(|_, _| Answer::Range))).collect();
    let items: Vec<Item> = servers.iter().zip(&files).map(|(server, bytes)| server.item(bytes)).collect();

    #[derive(Default)]
    struct Last(Mutex<(u64, u64)>);
    impl Progress for Last {
        fn update(&self, update: &Update<'_>) {
            *self.0.lock().unwrap() = (update.done, update.total);
        }
        fn finished(&self, _: &str) {}
        fn note(&self, _: &str) {}
    }
    let progress = Last::default();
    let cache = Cache::open(dir.path()).unwrap();
    let total: u64 = items.iter().map(|item| item.size).sum();
    assert_eq!(cache.missing_bytes(&items), total);
    let outcomes = cache.fetch_all(&Client::new(), &items, "test", &progress).unwrap();
    for (outcome, bytes) in outcomes.into_iter().zip(&files) {
        assert_eq!(&ready(outcome), bytes);
    }
    assert_eq!(*progress.0.lock().unwrap(), (total, total));
    assert_eq!(cache.missing_bytes(&items), 0);
    cache.retain(&[items[3].digest]).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_document_that_is_too_large_is_refused() {
    let server = Server::start(content(), Box::new(|_, _| Answer::Whole));
    assert_eq!(Client::new().get(&server.url, 300_000).unwrap(), content());
    assert!(matches!(Client::new().get(&server.url, 299_999), Err(FetchError::TooLarge { .. })));
}

#[test]
fn a_second_process_waits_for_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = FileLock::acquire(&path, || panic!("nobody holds it")).unwrap();
    let (waits, waiting) = std::sync::mpsc::channel();
    let second = std::thread::spawn({
        let path = path.clone();
        move || drop(FileLock::acquire(&path, || waits.send(()).unwrap()).unwrap())
    });
    waiting.recv().unwrap(); // it says so before it waits
    assert!(!second.is_finished());
    drop(held);
    second.join().unwrap();
}
