//! The protocol in a model of memory that tries every order in which two threads can see each other's writes.

use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU32, fence};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::*;

/// A record of half the ring: two of them fill it, and each that is received makes room again.
const SPACE: u32 = CAPACITY / 2;

#[derive(Default)]
struct Model {
    words: [AtomicU32; 4],
    for_sender: Notify,
    for_receiver: Notify,
}

impl Words for Model {
    fn load(&self, word: Word, order: Ordering) -> u32 {
        self.words[word as usize].load(order)
    }

    fn store(&self, word: Word, value: u32, order: Ordering) {
        self.words[word as usize].store(value, order);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

fn send(model: &Model, count: u32) {
    let mut sender = Sender::default();
    for _ in 0..count {
        while !sender.reserve(model, SPACE).unwrap() {
            model.for_sender.wait();
        }
        if sender.commit(model, SPACE) {
            model.for_receiver.notify();
        }
    }
}

fn receive(model: &Model, count: u32) {
    let mut receiver = Receiver::default();
    for _ in 0..count {
        while receiver.available(model).unwrap() == 0 {
            model.for_receiver.wait();
        }
        if receiver.release(model, SPACE) {
            model.for_sender.notify();
        }
    }
}

/// A side that sleeps beside a frame or beside room would never be woken, which the model reports as a deadlock.
#[test]
fn no_order_of_events_loses_a_wake_up() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let model = Arc::new(Model::default());
        let sender = {
            let model = model.clone();
            thread::spawn(move || send(&model, 3))
        };
        receive(&model, 3);
        sender.join().unwrap();
    });
}

/// Words in plain memory, for one thread.
#[derive(Default)]
struct Plain([std::cell::Cell<u32>; 4]);

impl Words for Plain {
    fn load(&self, word: Word, _: Ordering) -> u32 {
        self.0[word as usize].get()
    }

    fn store(&self, word: Word, value: u32, _: Ordering) {
        self.0[word as usize].set(value);
    }

    fn fence(&self) {}
}

#[test]
fn nobody_is_woken_who_is_awake() {
    let words = Plain::default();
    let (mut sender, mut receiver) = (Sender::default(), Receiver::default());
    assert_eq!(receiver.available(&words), Ok(0));
    assert_eq!(sender.reserve(&words, 64), Ok(true));
    assert!(sender.commit(&words, 64), "the receiver had found nothing");
    for _ in 0..99 {
        assert_eq!(sender.reserve(&words, 64), Ok(true));
        assert!(!sender.commit(&words, 64), "it was woken, and has not looked since");
    }
    for _ in 0..100 {
        assert_ne!(receiver.available(&words), Ok(0));
        assert!(!receiver.release(&words, 64), "the sender has room");
    }
    assert_eq!(receiver.available(&words), Ok(0));
}

#[test]
fn a_sender_without_room_is_woken_once_and_at_half() {
    let words = Plain::default();
    let (mut sender, mut receiver) = (Sender::default(), Receiver::default());
    let space = CAPACITY / 16;
    for _ in 0..16 {
        assert_eq!(sender.reserve(&words, space), Ok(true));
        sender.commit(&words, space);
    }
    assert_eq!(sender.reserve(&words, space), Ok(false));
    let woken: Vec<bool> = (0..16)
        .map(|_| {
            assert_ne!(receiver.available(&words), Ok(0));
            receiver.release(&words, space)
        })
        .collect();
    assert_eq!(woken.iter().position(|woken| *woken), Some(7), "half of the ring is free");
    assert_eq!(woken.iter().filter(|woken| **woken).count(), 1);
    assert_eq!(sender.reserve(&words, space), Ok(true));
}

#[test]
fn indices_that_cannot_be_are_refused() {
    let words = Plain::default();
    let mut sender = Sender::default();
    assert_eq!(sender.reserve(&words, CAPACITY), Ok(true));
    sender.commit(&words, CAPACITY);
    for tail in [1, 12, CAPACITY + 8, u32::MAX - 7, 1 << 31] {
        words.store(Word::Tail, tail, Ordering::Relaxed);
        assert!(sender.reserve(&words, 8).is_err(), "{tail}");
    }
    words.store(Word::Tail, 64, Ordering::Relaxed);
    assert_eq!(sender.reserve(&words, 64), Ok(true));
    words.store(Word::Tail, 56, Ordering::Relaxed);
    assert!(sender.reserve(&words, 128).is_err(), "it went back");
    let mut receiver = Receiver::default();
    for head in [1, 12, CAPACITY + 8, u32::MAX - 7, 1 << 31] {
        words.store(Word::Head, head, Ordering::Relaxed);
        assert!(receiver.available(&words).is_err(), "{head}");
    }
    words.store(Word::Head, 64, Ordering::Relaxed);
    assert_eq!(receiver.available(&words), Ok(64));
    words.store(Word::Head, 56, Ordering::Relaxed);
    assert!(receiver.head(&words).is_err(), "it went back");
}

#[test]
fn indices_wrap() {
    let words = Plain::default();
    let start = u32::MAX - 15;
    let mut sender = Sender { head: start, tail: start };
    let mut receiver = Receiver { head: start, tail: start };
    words.store(Word::Head, start, Ordering::Relaxed);
    words.store(Word::Tail, start, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(sender.reserve(&words, CAPACITY), Ok(true));
        sender.commit(&words, CAPACITY);
        assert_eq!(sender.reserve(&words, 8), Ok(false));
        assert_eq!(receiver.available(&words), Ok(CAPACITY));
        assert!(receiver.release(&words, CAPACITY));
    }
}
