use super::*;
use std::sync::Mutex;

const NOW: Now = Now { ns: 1_000_000, tsc: 5_000_000, tsc_khz: 2_000_000 };

struct Bench {
    apics: Vec<LocalApic>,
    notified: Arc<Mutex<Vec<u32>>>,
}

fn bench(count: u32) -> Bench {
    let notified = Arc::new(Mutex::new(Vec::new()));
    let sink = notified.clone();
    let bus = Arc::new(ApicBus::new(count, Box::new(move |index| sink.lock().unwrap().push(index))));
    let mut apics: Vec<_> = (0..count).map(|index| LocalApic::new(bus.clone(), index)).collect();
    for apic in &mut apics {
        apic.set_base(apic.base() | BASE_X2APIC).unwrap();
        apic.write_msr(0x80f, 0x1ff, NOW).unwrap();
    }
    Bench { apics, notified }
}

#[test]
fn higher_vectors_come_first_and_wait_for_eoi() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    apic.inbox().post(0x31);
    apic.inbox().post(0x81);
    assert_eq!(apic.accept(), Some(0x81));
    assert_eq!(apic.accept(), None, "0x31 is below the one in service");
    apic.write_msr(0x80b, 0, NOW).unwrap();
    assert_eq!(apic.accept(), Some(0x31));
}

#[test]
fn the_task_priority_holds_back_its_class() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    apic.set_cr8(3);
    apic.inbox().post(0x3f);
    assert_eq!((apic.pending(), apic.requested()), (None, Some(0x3f)));
    apic.set_cr8(2);
    assert_eq!(apic.pending(), Some(0x3f));
}

#[test]
fn an_ipi_reaches_the_apic_it_names_and_notifies_it() {
    let mut bench = bench(3);
    bench.apics[0].write_msr(0x830, 2 << 32 | 0x40, NOW).unwrap();
    assert_eq!(bench.apics[2].accept(), Some(0x40));
    assert_eq!(bench.apics[1].accept(), None);
    assert_eq!(*bench.notified.lock().unwrap(), [2]);
}

#[test]
fn logical_destinations_and_shorthands() {
    let mut bench = bench(3);
    bench.apics[0].write_msr(0x830, 0b110 << 32 | 1 << 11 | 0x41, NOW).unwrap();
    assert_eq!([1, 2].map(|index: usize| bench.apics[index].accept()), [Some(0x41); 2]);
    bench.apics[1].write_msr(0x830, 3 << 18 | 0x52, NOW).unwrap();
    assert_eq!([0, 1, 2].map(|index: usize| bench.apics[index].accept()), [Some(0x52), None, Some(0x52)]);
    bench.apics[1].write_msr(0x83f, 0x63, NOW).unwrap();
    assert_eq!(bench.apics[1].accept(), Some(0x63));
}

#[test]
fn an_nmi_ipi_is_not_a_vector() {
    let mut bench = bench(2);
    bench.apics[0].write_msr(0x830, 1 << 32 | 4 << 8, NOW).unwrap();
    assert!(bench.apics[1].inbox().take_nmi() && !bench.apics[1].inbox().take_nmi());
    assert_eq!(bench.apics[1].requested(), None);
}

#[test]
fn msis_go_to_their_destination_and_bad_ones_nowhere() {
    let mut bench = bench(2);
    let bus = bench.apics[0].bus().clone();
    bus.signal_msi(hv::Msi { address: 0xfee0_1000, data: 0x55 });
    bus.signal_msi(hv::Msi { address: 0xfee0_9000, data: 0x56 });
    bus.signal_msi(hv::Msi { address: 0xfee0_1000, data: 0x05 });
    assert_eq!(bench.apics[1].accept(), Some(0x55));
    assert_eq!(bench.apics[1].requested(), None);
    assert_eq!(bench.apics[0].requested(), None);
}

#[test]
fn the_deadline_timer_fires_once() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    apic.write_msr(0x832, 2 << 17 | 0xec, NOW).unwrap();
    apic.set_tsc_deadline(NOW.tsc + 2_000);
    assert_eq!(apic.deadline_ns(NOW), Some(NOW.ns + 1_000));
    assert!(!apic.run_timer(NOW));
    let later = Now { ns: NOW.ns + 1_000, tsc: NOW.tsc + 2_000, ..NOW };
    assert!(apic.run_timer(later) && !apic.run_timer(later));
    assert_eq!((apic.accept(), apic.tsc_deadline()), (Some(0xec), 0));
}

#[test]
fn the_periodic_timer_counts_down_and_repeats() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    apic.write_msr(0x83e, 0xb, NOW).unwrap(); // divide by 1
    apic.write_msr(0x832, 1 << 17 | 0x30, NOW).unwrap();
    apic.write_msr(0x838, 500, NOW).unwrap();
    let at = |ns| Now { ns: NOW.ns + ns, ..NOW };
    assert_eq!(apic.read_msr(0x839, at(100)), Ok(400));
    assert!(!apic.run_timer(at(499)) && apic.run_timer(at(1_250)));
    assert_eq!(apic.deadline_ns(at(1_250)), Some(NOW.ns + 1_500));
}

#[test]
fn a_masked_timer_is_silent() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    apic.write_msr(0x832, u64::from(LVT_MASKED) | 0x30, NOW).unwrap();
    apic.write_msr(0x838, 1, NOW).unwrap();
    assert!(apic.run_timer(Now { ns: NOW.ns + 10, ..NOW }));
    assert_eq!(apic.requested(), None);
}

#[test]
fn illegal_transitions_and_registers_are_refused() {
    let mut bench = bench(1);
    let apic = &mut bench.apics[0];
    assert_eq!(apic.set_base(BASE_ADDRESS | BASE_ENABLED), Err(Refused), "x2APIC to xAPIC");
    assert_eq!(apic.set_base(0x1000 | BASE_ENABLED), Err(Refused));
    assert_eq!(apic.write_msr(0x80b, 1, NOW), Err(Refused));
    assert_eq!(apic.write_msr(0x802, 1, NOW), Err(Refused));
    assert_eq!(apic.read_msr(0x80e, NOW), Err(Refused));
    apic.set_base(BASE_ADDRESS).unwrap();
    assert_eq!(apic.read_msr(0x802, NOW), Err(Refused));
}

#[test]
fn every_mmio_offset_has_an_answer() {
    let bus = Arc::new(ApicBus::new(1, Box::new(|_| ())));
    let mut apic = LocalApic::new(bus, 0);
    for at in 0..0x1000 {
        for value in [0, 1, 0xffff_ffff, 0x1_00ff] {
            apic.write_mmio(at, value, NOW);
            apic.read_mmio(at, NOW);
        }
    }
    for index in 0x7f0..0x910 {
        let _ = (apic.write_msr(index, u64::MAX, NOW), apic.read_msr(index, NOW));
    }
}

#[test]
fn a_saved_apic_goes_on_where_it_was() {
    let mut one = bench(1);
    let apic = &mut one.apics[0];
    apic.write_msr(0x83e, 0xb, NOW).unwrap();
    apic.write_msr(0x832, 0x30, NOW).unwrap();
    apic.write_msr(0x838, 1_000, NOW).unwrap();
    apic.inbox().post(0x44);
    apic.accept();
    apic.inbox().post(0x42);
    let page = apic.save(Now { ns: NOW.ns + 400, ..NOW });
    let mut two = bench(1);
    let other = &mut two.apics[0];
    let then = Now { ns: 77, ..NOW };
    other.restore(apic.base(), &page, then).unwrap();
    assert!(other.save(then) == page, "the pages differ");
    assert_eq!(other.deadline_ns(then), Some(77 + 600));
    assert_eq!(other.pending(), None);
    other.write_msr(0x80b, 0, then).unwrap();
    assert_eq!(other.accept(), Some(0x42));
    assert_eq!(other.restore(apic.base(), &page[1..], then), Err(Refused));
}
