//! The cases, by area.

mod exceptions;
mod interrupts;
mod io;
mod memory;
mod paging;
mod registers;
mod smp;
mod state;
mod timers;

use crate::Case;

/// Lists the cases of each area under `area::function`.
macro_rules! list {
    ($($area:ident: $($case:ident)*;)*) => {
        &[$($(Case { name: concat!(stringify!($area), "::", stringify!($case)), run: $area::$case },)*)*]
    };
}

/// Every case.
pub(crate) const ALL: &[Case] = list! {
    io:
        port_sizes port_strings mmio_reads mmio_writes mmio_read_extends mmio_unaligned mmio_across_pages
        mmio_across_the_end_of_ram mmio_read_modify_write mmio_strings mmio_from_ring_3 doorbell;
    interrupts:
        msi_and_eoi msi_waits_for_sti task_priority_holds_back nested_priorities self_ipi nmi_by_msi
        halt_and_wake sti_shadow_reaches_hlt halt_until_the_timer
        a_timer_that_has_run_out_stays_so x2apic kick_while_running kick_while_halted stop_before_run;
    memory:
        dirty_log_of_vcpu_writes dirty_log_of_device_writes dirty_log_off read_only_reads
        read_only_drops_writes code_changes_itself device_changes_code;
    paging:
        accessed_and_dirty large_page invlpg cr3_switch global_pages_survive_cr3 two_addresses_of_one_page
        code_of_a_remapped_page code_of_a_remapped_large_page two_address_spaces invpcid_of_each_kind;
    exceptions:
        divide_error invalid_opcode breakpoint general_protection reserved_control_bit bad_memory_type paging_stays_on_in_long_mode non_canonical bad_selector segment_not_present
        stack_fault device_not_available page_not_present page_write_protected page_no_execute
        page_supervisor_from_ring_3 page_fault_of_read_modify_write page_fault_across_pages single_step simd_exception alignment_check
        privileged_in_ring_3 software_interrupt_from_ring_3 double_fault_stack triple_fault
        fault_keeps_registers fault_keeps_flags;
    registers:
        control_registers segment_bases swapgs system_call_and_return msr_values unknown_msr non_canonical_msr debug_registers
        extended_control_register cpuid flags_of_arithmetic task_priority_register x87_and_sse
        flags_kept_by_string_and_system_instructions;
    timers:
        tsc_runs tsc_can_be_set tsc_aux apic_one_shot apic_periodic apic_deadline;
    state:
        every_element_round_trips elements_encode registers_are_what_the_guest_sees bad_elements_are_refused
        running_guest_moves halted_guest_moves pending_interrupt_moves apic_timer_moves
        sse_registers_move;
    smp:
        start_of_a_second_cpu locked_add compare_exchange exchange_lock interrupt_between_cpus halted_cpu_is_woken_by_the_other timers_wake_both_cpus
        one_runs_while_the_other_was_never_started stores_are_seen_in_order fences_order_a_store_and_a_load code_changed_by_another_cpu page_change_with_shootdown apic_ids;
};
