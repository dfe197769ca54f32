use super::*;
use std::time::Duration;

#[test]
fn a_ring_from_another_thread_ends_the_wait() {
    let bell = Doorbell::new().unwrap();
    let waiter = Waiter::new().unwrap();
    waiter.add(&bell, 7, Interest::READ).unwrap();
    let ringer = bell.clone();
    let thread = std::thread::spawn(move || ringer.ring());
    let mut events = Vec::new();
    waiter.wait(&mut events, None).unwrap();
    thread.join().unwrap();
    assert_eq!(events, [Event { token: 7, readable: true, writable: false, hung_up: false }]);
    assert!(bell.answer() && !bell.answer());
}

#[test]
fn many_rings_count_once() {
    let bell = Doorbell::new().unwrap();
    (0..1000).for_each(|_| bell.ring());
    assert!(bell.answer());
    assert!(!bell.answer());
}

#[test]
fn a_silent_bell_times_out() {
    let bell = Doorbell::new().unwrap();
    let waiter = Waiter::new().unwrap();
    waiter.add(&bell, 1, Interest::READ).unwrap();
    let mut events = vec![Event { token: 9, readable: true, writable: true, hung_up: true }];
    waiter.wait(&mut events, Some(Duration::from_millis(1))).unwrap();
    assert!(events.is_empty());
}

#[test]
fn interest_decides_what_is_seen() {
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let waiter = Waiter::new().unwrap();
    waiter.add(&near, 1, Interest::NONE).unwrap();
    let mut events = Vec::new();
    waiter.wait(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());
    waiter.modify(&near, 2, Interest::WRITE).unwrap();
    waiter.wait(&mut events, None).unwrap();
    assert_eq!(events, [Event { token: 2, readable: false, writable: true, hung_up: false }]);
    waiter.modify(&near, 3, Interest::NONE).unwrap();
    drop(far);
    waiter.wait(&mut events, None).unwrap();
    assert!(events[0].hung_up, "a hang-up is reported without interest");
    waiter.remove(&near).unwrap();
    waiter.wait(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());
}
