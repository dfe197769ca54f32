//! Any bytes as a disk's description: what parses describes a disk that can be.

/// One input: the file's content.
pub(crate) fn run(data: &[u8]) {
    let Ok(description) = disk::Description::parse(data) else { return };
    assert!(description.size > 0 && description.size % 4096 == 0);
    assert_eq!(description.layers.len(), 1);
    assert!(description.layers.iter().all(|layer| !layer.file.contains(['/', '\0'])));
}
