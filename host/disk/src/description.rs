//! `disk.json`: what a disk consists of.

use serde::{Deserialize, Serialize};

use crate::DiskError;

/// The only `format` that is one of ours.
const FORMAT: &str = "vivarium-disk";
/// The version that this code reads and writes.
const VERSION: u32 = 1;
/// Sizes are multiples of this many bytes, so that every guest's block size fits.
pub(crate) const GRAIN: u64 = 4096;
/// The largest disk in bytes (64 TiB).
const MAX_SIZE: u64 = 64 << 40;

/// A disk's description as it is written. JSON, as people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    format: String,
    version: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The layers from the bottom to the top; the last one is written to.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its file's name in the disk's folder.
    pub file: String,
    /// How it is stored.
    pub format: LayerFormat,
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// Byte for byte, sparse, as long as the disk.
    Raw,
}

/// Only these are read before the version is known.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Description {
    /// A new disk with one layer.
    ///
    /// # Errors
    /// [`DiskError::Size`] for sizes that no disk can have.
    pub fn new(size: u64) -> Result<Description, DiskError> {
        let layers = vec![Layer { file: "layer-0.raw".into(), format: LayerFormat::Raw }];
        let description = Description { format: FORMAT.into(), version: VERSION, size, layers };
        description.validate()?;
        Ok(description)
    }

    /// Reads a description.
    ///
    /// # Errors
    /// It is none, is of a version that this program does not know, or describes what cannot be.
    pub fn parse(text: &[u8]) -> Result<Description, DiskError> {
        let head: Head = serde_json::from_slice(text).map_err(DiskError::Description)?;
        if head.format != FORMAT {
            return Err(DiskError::Format(head.format.escape_debug().to_string()));
        }
        if head.version != VERSION {
            return Err(DiskError::Version { found: head.version, known: VERSION });
        }
        let description: Description = serde_json::from_slice(text).map_err(DiskError::Description)?;
        description.validate()?;
        Ok(description)
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, DiskError> {
        let mut text = serde_json::to_vec(self).map_err(DiskError::Description)?;
        text.push(b'\n');
        Ok(text)
    }

    fn validate(&self) -> Result<(), DiskError> {
        if self.size == 0 || !self.size.is_multiple_of(GRAIN) || self.size > MAX_SIZE {
            return Err(DiskError::Size(self.size));
        }
        // Frozen layers below come with forks, and with a version of their own.
        if self.layers.len() != 1 {
            return Err(DiskError::Layers(self.layers.len()));
        }
        match self.layers.iter().find(|layer| !is_layer_name(&layer.file)) {
            Some(layer) => Err(DiskError::LayerName(layer.file.escape_debug().to_string())),
            None => Ok(()),
        }
    }
}

/// `layer-` and a number and `.raw`: nothing that could lead elsewhere.
fn is_layer_name(name: &str) -> bool {
    let number = name.strip_prefix("layer-").and_then(|rest| rest.strip_suffix(".raw"));
    number.is_some_and(|n| (1..=9).contains(&n.len()) && n.bytes().all(|byte| byte.is_ascii_digit()))
}
