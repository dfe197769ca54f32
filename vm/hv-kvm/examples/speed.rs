//! Prints how fast this host's `/dev/kvm` runs ring-0 code.

fn main() {
    let start = std::time::Instant::now();
    match hv_kvm::measure_ring0(std::time::Duration::from_millis(250)) {
        Ok(speed) => println!("{speed:?}, emulated: {}, found in {:?}", speed.is_emulated(), start.elapsed()),
        Err(error) => println!("{error}"),
    }
}
