//! The first run: downloads and the base image, with progress; and what an interruption says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sandbox::engine::{self, Engine};
use sandbox::folder::Sandbox;
use sandbox::images::{Images, Stock};
use sandbox::places::Places;

use crate::failure::{Failure, INTERRUPTED};
use crate::progress;

/// The guest's agent: static, for this architecture, built with this program (`build.rs`).
pub(crate) static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// The current base image's id. Makes it when there is none, and tells how far it is.
pub(crate) fn ensure_image(
    places: &Places,
    engine: Option<Engine>,
    interactive: bool,
) -> Result<String, Failure> {
    let images = Images::open(places, AGENT)?;
    if let Some(image) = images.current()? {
        return Ok(image);
    }
    let begun = Instant::now();
    let size = images.download_bytes().div_ceil(1_000_000);
    let cache = places.short(&places.cache);
    eprintln!("Vivarium sets itself up once (about {size} MB to download, kept in {cache}).");
    SETTING_UP.store(true, Ordering::SeqCst);
    say_what_is_kept_when_interrupted(cache);
    let progress = progress::for_user(interactive);
    let image = images.ensure(engine, &*progress)?;
    drop(progress);
    SETTING_UP.store(false, Ordering::SeqCst);
    let choice = engine::choose(engine, places)?;
    let because = match choice.engine {
        Engine::Soft => " No hardware virtualization here: using the software CPU (viv diagnose says why).",
        Engine::Kvm => "",
    };
    eprintln!("Ready in {}.{because}", progress::seconds(begun.elapsed()));
    Ok(image)
}

/// Makes the image of a sandbox that was made before, if it has left the cache: all in there can be had again.
pub(crate) fn restore_image(places: &Places, sandbox: &Sandbox, interactive: bool) -> Result<(), Failure> {
    let images = Images::open(places, AGENT)?;
    if images.stock(&sandbox.spec.image)? != Stock::Makeable {
        // The start says what is to be said of one that is gone.
        return Ok(());
    }
    let engine = sandbox.spec.engine.as_deref().and_then(Engine::from_name);
    ensure_image(places, engine, interactive).map(|_| ())
}

/// Whether the set-up is under way, which is when an interruption has something to say.
static SETTING_UP: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C ends with a word about what is kept, while set-up lasts, and without one until a session takes the
/// signals over. Every step of set-up may be killed at any moment, so there is nothing to tidy up.
fn say_what_is_kept_when_interrupted(cache: String) {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT]) else { return };
    std::thread::spawn(move || {
        if signals.forever().next().is_some() && !crate::session::has_begun() {
            if SETTING_UP.load(Ordering::SeqCst) {
                eprintln!(
                    "\nInterrupted. What was downloaded is kept in {cache}; the same command goes on from there, and viv prune --images removes what was begun."
                );
            }
            std::process::exit(INTERRUPTED.into());
        }
    });
}
