use super::*;
use crate::device::{Active, Device, DeviceIdentity};
use crate::testing::{Buffer, EVENT_INDEX, Guest, INDIRECT, RAM, SIZE, VERSION_1, ram};
use hv::Vm;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// Gives back how many bytes it could read and write.
struct Counter;

impl Device for Counter {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 42, name: "counter", class: [0, 0xff, 0] }
    }
    fn queues(&self) -> Vec<u16> {
        vec![64]
    }
    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| {
            let mut bytes = vec![0; chain.readable_len() as usize + 1];
            assert_eq!(chain.reader(ram).read(&mut bytes), bytes.len() - 1);
            let answer = [chain.readable_len().to_le_bytes(), chain.writable_len().to_le_bytes()].concat();
            chain.writer(ram).write(&answer);
        })
    }
    fn reset(&mut self) {}
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_TABLE: u16 = 4;
const DATA: u64 = 0x200_0000;

/// Makes these descriptors of queue 0 and offers the first; whether the device takes them, and its answer.
fn offer(descriptors: &[(u64, u32, u16, u16)], table: &[(u64, u32, u16, u16)]) -> Result<(u32, u32), ()> {
    let mut guest = Guest::ready(Counter);
    let (at, ..) = Guest::rings(0);
    for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
        guest.descriptor(at, index, *address, *len, *flags, *next);
    }
    for (index, (address, len, flags, next)) in (0..).zip(table) {
        guest.descriptor(DATA, index, *address, *len, *flags, *next);
    }
    guest.make_available(0, 0);
    guest.ring(0);
    let (_, _, used) = Guest::rings(0);
    loop {
        if guest.status() & 0x40 != 0 {
            return Err(());
        }
        if guest.get::<u16>(used + 2) == 1 {
            assert!(guest.get::<u32>(used + 8) <= 8);
            let last = descriptors.iter().chain(table).rfind(|descriptor| descriptor.2 & WRITE != 0).unwrap();
            return Ok((guest.get(last.0), guest.get(last.0 + 4)));
        }
        std::thread::yield_now();
    }
}

const BUFFER: u64 = 0x300_0000;

#[test]
fn plain_and_indirect_chains_are_taken() {
    assert_eq!(offer(&[(BUFFER, 5, NEXT, 1), (BUFFER + 64, 9, WRITE, 0)], &[]), Ok((5, 9)));
    let table = [(BUFFER, 5, NEXT, 1), (BUFFER + 5, 6, NEXT, 2), (BUFFER + 64, 9, WRITE, 0)];
    assert_eq!(offer(&[(DATA, 48, INDIRECT_TABLE, 0)], &table), Ok((11, 9)));
    let mixed = [(BUFFER + 5, 6, NEXT, 1), (BUFFER + 64, 9, WRITE, 0)];
    assert_eq!(offer(&[(BUFFER, 5, NEXT, 1), (DATA, 32, INDIRECT_TABLE, 0)], &mixed), Ok((11, 9)));
    assert_eq!(
        offer(&[(BUFFER, 0, NEXT, 1), (BUFFER + 64, 9, WRITE, 0)], &[]),
        Ok((0, 9)),
        "an empty buffer"
    );
}

#[test]
fn broken_chains_need_a_reset() {
    let answer = (BUFFER + 64, 9, WRITE, 0);
    let broken: &[&[(u64, u32, u16, u16)]] = &[
        &[(BUFFER, 5, NEXT, 0)],                                   // a loop
        &[(BUFFER, 5, NEXT, 1), (BUFFER, 5, NEXT, 0)],             // a longer loop
        &[(BUFFER, 5, NEXT, SIZE)],                                // outside the table
        &[(BUFFER, 5, WRITE | NEXT, 1), (BUFFER + 64, 9, 0, 0)],   // readable after writable
        &[(RAM + 0x1000, 1, NEXT, 1), answer],                     // outside memory
        &[(RAM - 4, 0x2000, NEXT, 1), answer],                     // across its end
        &[(u64::MAX, 2, NEXT, 1), answer],                         // across the end of everything
        &[(RAM, 8, WRITE, 0)],                                     // writable, but read-only memory
        &[(0, 9 << 20, NEXT, 1), (0, 9 << 20, NEXT, 2), answer],   // too many bytes
        &[(0, u32::MAX, NEXT, 1), (0, u32::MAX, NEXT, 2), answer], // overflow
        &[(DATA, 8, INDIRECT_TABLE, 0)],                           // a piece of a table
        &[(DATA, 0, INDIRECT_TABLE, 0)],                           // an empty table
        &[(DATA, 16 * 17, INDIRECT_TABLE, 0)],                     // larger than the queue
        &[(DATA, 16, INDIRECT_TABLE | NEXT, 1), answer],           // chained on
        &[(u64::MAX - 15, 16, INDIRECT_TABLE, 0)],                 // a table outside memory
    ];
    for descriptors in broken {
        assert_eq!(offer(descriptors, &[]), Err(()), "{descriptors:x?}");
    }
    let nested = [(DATA + 64, 16, INDIRECT_TABLE, 0)];
    assert_eq!(offer(&[(DATA, 16, INDIRECT_TABLE, 0)], &nested), Err(()), "nested");
    let beyond = [(BUFFER, 1, NEXT, 1)];
    assert_eq!(offer(&[(DATA, 16, INDIRECT_TABLE, 0)], &beyond), Err(()), "beyond the indirect table");
}

#[test]
fn an_available_index_that_runs_ahead_needs_a_reset() {
    let guest = Guest::ready(Counter);
    let (_, driver, _) = Guest::rings(0);
    guest.put(driver + 2, SIZE + 1);
    guest.ring(0);
    guest.wait_for_needs_reset();
}

#[test]
fn a_head_outside_the_table_needs_a_reset() {
    let mut guest = Guest::ready(Counter);
    guest.make_available(0, SIZE);
    guest.ring(0);
    guest.wait_for_needs_reset();
    guest.queues.fill_with(Default::default);
    guest.initialise(VERSION_1);
    guest.request(0, &[Buffer::Out(&[0; 3]), Buffer::In(8)]);
}

#[test]
fn a_broken_device_interrupts_for_its_configuration() {
    let mut guest = Guest::ready(Counter);
    guest.make_available(0, SIZE);
    guest.ring(0);
    guest.vm.wait_for_messages(1);
    assert_eq!(guest.vm.messages()[0].data, 0);
}

#[test]
fn the_driver_is_interrupted_only_when_it_asks() {
    let mut guest = Guest::ready(Counter);
    guest.request(0, &[Buffer::In(8)]);
    // The interrupt comes behind the index that the guest waited for.
    guest.vm.wait_for_messages(1);
    let before = guest.vm.messages().len();
    // The next interrupt is wanted far in the future.
    guest.add(0, &[Buffer::In(8)]);
    let (_, driver, _) = Guest::rings(0);
    guest.put(driver + 4 + 2 * u64::from(SIZE), 1000u16);
    guest.ring(0);
    guest.wait(0);
    assert_eq!(guest.vm.messages().len(), before);
    let mut old = Guest::new(Counter);
    old.initialise(VERSION_1);
    old.request(0, &[Buffer::In(8)]);
    old.vm.wait_for_messages(1);
}

/// A queue without a transport.
fn bare() -> (GuestRam, Queue) {
    let ram = ram();
    let vm: Arc<dyn Vm> = Arc::new(hv_fake::FakeVm::default());
    let (descriptors, driver, device) = Guest::rings(0);
    let state = QueueState {
        size: 16,
        vector: 0xffff,
        enabled: true,
        descriptors,
        driver,
        device,
        next_available: 0,
        next_used: 0,
    };
    let interrupt = Interrupt::new(Arc::new(Msix::new(vm, 1)), NO_VECTOR);
    let queue = Queue::new(&state, true, &ram, interrupt).unwrap();
    (ram, queue)
}

proptest! {
    /// Rings of rubbish: every chain that comes out has all its bytes in memory and no more than the limit.
    #[test]
    fn whatever_is_in_the_rings_is_checked(
        table in proptest::collection::vec((0u64..RAM + 0x2000, 0u32..0x4000, 0u16..8, 0u16..20), 16),
        heads in proptest::collection::vec(0u16..18, 16),
        index in 0u16..20,
        indirect in proptest::collection::vec(any::<u8>(), 256),
    ) {
        let (ram, mut queue) = bare();
        let (descriptors, driver, _) = Guest::rings(0);
        let memory = ram.memory();
        for (at, (address, len, flags, next)) in (0u64..).zip(&table) {
            let address = if flags & 4 != 0 { DATA } else { *address };
            memory.write_obj(address, GuestAddress(descriptors + 16 * at)).unwrap();
            memory.write_obj(*len, GuestAddress(descriptors + 16 * at + 8)).unwrap();
            memory.write_obj(*flags, GuestAddress(descriptors + 16 * at + 12)).unwrap();
            memory.write_obj(*next, GuestAddress(descriptors + 16 * at + 14)).unwrap();
        }
        memory.write_slice(&indirect, GuestAddress(DATA)).unwrap();
        for (slot, head) in (0u64..).zip(&heads) {
            memory.write_obj(*head, GuestAddress(driver + 4 + 2 * slot)).unwrap();
        }
        memory.write_obj(index, GuestAddress(driver + 2)).unwrap();
        for _ in 0..20 {
            let Ok(Some(mut chain)) = queue.pop() else { break };
            let readable = chain.readable_len() as usize;
            prop_assert!(readable + chain.writable_len() as usize <= 16 << 20);
            let mut bytes = vec![0; readable + 1];
            prop_assert_eq!(chain.reader(&ram).read(&mut bytes), readable);
            let writable = chain.writable_len() as usize;
            prop_assert_eq!(chain.writer(&ram).write(&vec![1; writable + 1]), writable);
            prop_assert_eq!(chain.written() as usize, writable);
            queue.complete(chain).unwrap();
        }
    }
}

#[test]
fn features_name_the_ring_formats() {
    let guest = Guest::new(Counter);
    guest.write(0, &0u32.to_le_bytes());
    assert_eq!(u64::from(guest.read32(4)), INDIRECT | EVENT_INDEX);
    guest.write(0, &1u32.to_le_bytes());
    assert_eq!(guest.read32(4), 1);
}

#[test]
fn chains_given_back_together_are_seen_at_once_and_told_of_once() {
    // The driver's event index, and whether three chains from used index 0 on reach it.
    for (event, awaited) in [(0u16, true), (1, true), (2, true), (3, false), (0xffff, false), (0x8000, false)]
    {
        let (ram, mut queue) = bare();
        let put = |at: u64, value: u16| ram.memory().write_obj(value, GuestAddress(at)).unwrap();
        let state = queue.state();
        for slot in 0..3u16 {
            ram.memory().write_obj(BUFFER, GuestAddress(state.descriptors + 16 * u64::from(slot))).unwrap();
            put(state.descriptors + 16 * u64::from(slot) + 8, 100);
            put(state.descriptors + 16 * u64::from(slot) + 12, WRITE);
            put(state.driver + 4 + 2 * u64::from(slot), 2 - slot);
        }
        put(state.driver + 4 + 2 * u64::from(queue.state().size as u16), event);
        put(state.driver + 2, 3);
        let mut chains: Vec<_> = (0..3).map(|_| queue.pop().unwrap().unwrap()).collect();
        assert!(queue.pop().unwrap().is_none());
        chains[1].writer(&ram).write(&[7; 33]);
        // The last one is put back and popped again.
        queue.put_back(chains.pop().unwrap());
        chains.push(queue.pop().unwrap().unwrap());
        assert_eq!(queue.is_awaited(0, 3), Ok(awaited), "{event:#x}");
        queue.complete_together(&chains).unwrap();
        let used: [u32; 6] = std::array::from_fn(|word| {
            ram.memory().read_obj(GuestAddress(state.device + 4 + 4 * word as u64)).unwrap()
        });
        assert_eq!(used, [2, 0, 1, 33, 0, 0]);
        assert_eq!(ram.memory().read_obj::<u16>(GuestAddress(state.device + 2)).unwrap(), 3);
        assert_eq!(queue.state().next_used, 3);
    }
}
