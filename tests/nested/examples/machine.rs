//! Runs a script in a nested machine, for trying things by hand:
//!
//! ```text
//! cargo run -p nested --example machine -- SCRIPT [--folder DIR] [--free MIB] [--memory MIB] [--vcpus N]
//!     [--limit SECONDS] [FILE=/PATH…]
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nested::{Job, Nested};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let script = std::fs::read_to_string(arguments.next().ok_or("which script?")?)?;
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut folder: Option<PathBuf> = None;
    let (mut free, mut memory, mut limit, mut vcpus) = (1024, 6144, 600, 1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing");
        match argument.as_str() {
            "--folder" => folder = Some(value()?.into()),
            "--free" => free = value()?.parse()?,
            "--memory" => memory = value()?.parse()?,
            "--vcpus" => vcpus = value()?.parse()?,
            "--limit" => limit = value()?.parse()?,
            file => {
                let (from, to) = file.split_once('=').ok_or("a file is FILE=/PATH")?;
                files.push((from.into(), to.into()));
            }
        }
    }
    let files: Vec<(&Path, &str)> = files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
    let job = Job {
        files: &files,
        folder: folder.as_deref(),
        free_mib: free,
        script: &script,
        memory_mib: memory,
        vcpus,
        cpu: Job::default().cpu,
        network: false,
        limit: Duration::from_secs(limit),
    };
    let output = Nested::prepare()?.run(&job)?;
    print!("{}", output.text);
    Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
}
