//! What a link carries in one direction, between two threads that sleep when they have nothing to do: gigabits and frames a second,
//! and how many of the frames found the receiver asleep. `cargo run --release -p frame-ring --example frames [SECONDS]`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use doorbell::{Doorbell, Interest, Waiter};
use frame_ring::{Link, MAX_FRAME, Pair, Sent, Side, pair};

/// Sleeps until the other side rings.
fn wait(link: &Link, waiter: &Waiter) {
    let mut events = Vec::new();
    waiter.wait(&mut events, Some(Duration::from_millis(100))).expect("the waiter works");
    link.bell().answer();
}

fn waiter(link: &Link) -> Waiter {
    let waiter = Waiter::new().expect("there are descriptors");
    waiter.add(link.bell(), 0, Interest::READ).expect("it can wait for a bell");
    waiter
}

/// Takes frames until it is told to stop: how many, and how often it slept.
fn drain(mut link: Link, stop: &AtomicBool) -> (u64, u64) {
    let (waiter, mut buffer, mut frames, mut sleeps) = (waiter(&link), vec![0; MAX_FRAME], 0, 0);
    while !stop.load(Ordering::Relaxed) {
        match link.receive(&mut buffer).expect("the link is whole") {
            Some(_) => frames += 1,
            None => {
                wait(&link, &waiter);
                sleeps += 1;
            }
        }
    }
    (frames, sleeps)
}

fn run(payload: usize, time: Duration) {
    let Pair { memory, guest_bell, network_bell } = pair().expect("there is memory");
    let (mine, theirs) = (Doorbell::from(guest_bell), Doorbell::from(network_bell));
    let clone = memory.try_clone().expect("there are descriptors");
    let link =
        |memory, side, mine, theirs| Link::from_parts(memory, side, mine, theirs).expect("it is a link");
    let mut guest = link(memory, Side::Guest, mine.clone(), theirs.clone());
    let network = link(clone, Side::Network, theirs, mine);
    let stop = Arc::new(AtomicBool::new(false));
    let receiver = {
        let stop = stop.clone();
        std::thread::spawn(move || drain(network, &stop))
    };
    let (waiter, frame) = (waiter(&guest), vec![0x5a; payload]);
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..16 {
            while guest.send(&[&[0; 12], &frame]).expect("the link is whole") == Sent::Full {
                wait(&guest, &waiter);
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let (frames, sleeps) = receiver.join().expect("the receiver works");
    let bits = frames as f64 * payload as f64 * 8.0;
    println!(
        "{payload:6} bytes  {:7.2} Gbit/s  {:9.0} frames/s  receiver asleep for {:.2} % of them",
        bits / elapsed / 1e9,
        frames as f64 / elapsed,
        100.0 * sleeps as f64 / frames.max(1) as f64,
    );
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3.0);
    for payload in [65_536, 1500] {
        run(payload, Duration::from_secs_f64(seconds));
    }
}
