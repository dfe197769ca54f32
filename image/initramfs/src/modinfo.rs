//! What a kernel module says of itself: the `depends=` line of its `.modinfo` section (ELF64, little-endian), and the signature behind it.

/// What ends a signed module (kernel/module/signing.c).
const SIGNED: &[u8] = b"~Module signature appended~\n";
/// Bytes of `struct module_signature` before that; its last four are the signature's length, big-endian.
const SIGNATURE_INFO: usize = 12;

/// A module without its appended signature.
///
/// The guest's kernel does not insist on one, and the guest's root may load what it likes; the module's origin was verified
/// with the package that it came in. Checking a signature costs the guest about 80 million instructions a module (measured on Debian's
/// 6.12 kernel), more than all else about loading it.
pub fn without_signature(module: &[u8]) -> &[u8] {
    let stripped = || {
        let (rest, info) = module.strip_suffix(SIGNED)?.split_last_chunk::<SIGNATURE_INFO>()?;
        let [.., a, b, c, d] = *info;
        let signature = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        rest.get(..rest.len().checked_sub(signature)?)
    };
    stripped().unwrap_or(module)
}

/// The modules that this one needs, by name; `None` when the bytes are not a kernel module.
pub(crate) fn depends(elf: &[u8]) -> Option<Vec<String>> {
    let info = section(elf, b".modinfo")?;
    let line = info.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let text = std::str::from_utf8(line.unwrap_or_default()).ok()?;
    Some(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(elf, 0x28, 8)?;
    let entry_size = number(elf, 0x3a, 2)?;
    let count = number(elf, 0x3c, 2)?;
    let names_index = number(elf, 0x3e, 2)?;
    let content = |index: usize| -> Option<(usize, &'a [u8])> {
        let header = table.checked_add(index.checked_mul(entry_size)?)?;
        let name = number(elf, header, 4)?;
        let offset = number(elf, header.checked_add(0x18)?, 8)?;
        let size = number(elf, header.checked_add(0x20)?, 8)?;
        Some((name, elf.get(offset..offset.checked_add(size)?).unwrap_or_default()))
    };
    let (_, names) = content(names_index)?;
    (0..count).filter_map(content).find_map(|(name, bytes)| {
        let name = names.get(name..)?.split(|b| *b == 0).next()?;
        (name == wanted).then_some(bytes)
    })
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    let value = field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).ok()
}
