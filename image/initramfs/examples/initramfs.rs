//! Makes an initial RAM disk by hand: `initramfs AGENT MODULES-DIR OUTPUT`. For trying the agent under QEMU.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, modules, output] = arguments.as_slice() else {
        return Err("use: initramfs AGENT MODULES-DIR OUTPUT".into());
    };
    let modules = initramfs::Modules::from_dir(Path::new(modules))?;
    std::fs::write(output, initramfs::build(&std::fs::read(agent)?, &modules)?)?;
    Ok(())
}
