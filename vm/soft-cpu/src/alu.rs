//! Integer arithmetic with x86 flags, for operands of 1, 2, 4 or 8 bytes held zero-extended in `u64`.

use crate::cpu::flag::{AF, CF, OF, PF, SF, STATUS, ZF};

/// All ones for an operand of `size` bytes.
#[inline(always)]
pub(crate) const fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// Bits in an operand of `size` bytes.
#[inline(always)]
pub(crate) const fn bits(size: u8) -> u32 {
    8 * size as u32
}

/// The top bit of `value` as 0 or 1.
#[inline(always)]
pub(crate) const fn top(value: u64, size: u8) -> u64 {
    (value >> (bits(size) - 1)) & 1
}

/// Sign-extends from `size` bytes.
#[inline(always)]
pub(crate) const fn sext(value: u64, size: u8) -> u64 {
    let shift = 64 - bits(size);
    ((value << shift) as i64 >> shift) as u64
}

/// ZF, SF and PF of a result.
#[inline(always)]
pub(crate) const fn zsp(result: u64, size: u8) -> u64 {
    let low = (result ^ (result >> 4)) & 0xf;
    let even = ((0x9669u64 >> low) & 1) * PF;
    let zero = if result & mask(size) == 0 { ZF } else { 0 };
    even | zero | top(result, size) * SF
}

/// `a + b + carry`, and all status flags.
#[inline(always)]
pub(crate) const fn add(a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    let r = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let cf = top((a & b) | ((a | b) & !r), size) * CF;
    let of = top((a ^ r) & (b ^ r), size) * OF;
    (r, zsp(r, size) | cf | of | ((a ^ b ^ r) & AF))
}

/// `a - b - borrow`, and all status flags.
#[inline(always)]
pub(crate) const fn sub(a: u64, b: u64, borrow: u64, size: u8) -> (u64, u64) {
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let cf = top((!a & b) | (!(a ^ b) & r), size) * CF;
    let of = top((a ^ b) & (a ^ r), size) * OF;
    (r, zsp(r, size) | cf | of | ((a ^ b ^ r) & AF))
}

/// Flags of AND, OR, XOR, TEST.
#[inline(always)]
pub(crate) const fn logic(r: u64, size: u8) -> u64 {
    zsp(r, size)
}

/// A shift or rotate; the numbers are those of the opcode's reg field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// Shifts `a` by `count` (not yet masked); returns the result and the new flags given the old ones.
pub(crate) fn shift(op: Shift, a: u64, count: u64, size: u8, flags: u64) -> (u64, u64) {
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    if count == 0 {
        return (a, flags);
    }
    let n = bits(size);
    let m = mask(size);
    match op {
        Shift::Shl => {
            let wide = (a as u128) << count;
            let r = wide as u64 & m;
            let cf = ((wide >> n) & 1) as u64;
            let of = top(r, size) ^ cf;
            (r, (flags & !STATUS) | zsp(r, size) | cf * CF | of * OF)
        }
        Shift::Shr => {
            let cf = if count <= n { (a >> (count - 1)) & 1 } else { 0 };
            let r = if count < n { a >> count } else { 0 };
            let of = if count == 1 { top(a, size) } else { top(r, size) ^ top(r << 1, size) };
            (r, (flags & !STATUS) | zsp(r, size) | cf * CF | of * OF)
        }
        Shift::Sar => {
            let wide = sext(a, size) as i64;
            let cf = ((wide >> (count - 1).min(63)) & 1) as u64;
            let r = (wide >> count.min(63)) as u64 & m;
            (r, (flags & !STATUS) | zsp(r, size) | cf * CF)
        }
        Shift::Rol | Shift::Ror => {
            let turn = count % n;
            let left = if op == Shift::Rol { turn } else { (n - turn) % n };
            let r = if left == 0 { a } else { ((a << left) | (a >> (n - left))) & m };
            let (cf, of) = if op == Shift::Rol {
                (r & 1, top(r, size) ^ (r & 1))
            } else {
                (top(r, size), top(r, size) ^ top(r << 1, size))
            };
            (r, (flags & !(CF | OF)) | cf * CF | of * OF)
        }
        Shift::Rcl | Shift::Rcr => rotate_carry(op, a, count % (n + 1), size, flags),
    }
}

fn rotate_carry(op: Shift, a: u64, turn: u32, size: u8, flags: u64) -> (u64, u64) {
    let n = bits(size);
    if turn == 0 {
        return (a, flags);
    }
    let wide = a as u128 | ((flags & CF) as u128) << n;
    let ring = (1u128 << (n + 1)) - 1;
    let left = if op == Shift::Rcl { turn } else { n + 1 - turn };
    let rotated = ((wide << left) | (wide >> (n + 1 - left))) & ring;
    let r = rotated as u64 & mask(size);
    let cf = ((rotated >> n) & 1) as u64;
    let of = if op == Shift::Rcl { top(r, size) ^ cf } else { top(r, size) ^ top(r << 1, size) };
    (r, (flags & !(CF | OF)) | cf * CF | of * OF)
}

/// SHLD/SHRD.
pub(crate) fn double_shift(left: bool, a: u64, b: u64, count: u64, size: u8, flags: u64) -> (u64, u64) {
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    if count == 0 {
        return (a, flags);
    }
    let n = bits(size);
    // A 16-bit shift by more than 16 is undefined; hosts shift a:b:a.
    let (r, cf) = if left {
        let wide = if size == 2 {
            (a as u128) << 32 | (b as u128) << 16 | a as u128
        } else {
            (a as u128) << n | b as u128
        };
        let total = if size == 2 { 48 } else { 2 * n };
        (((wide << count) >> (total - n)) as u64 & mask(size), ((wide >> (total - count)) & 1) as u64)
    } else {
        let wide = if size == 2 {
            (a as u128) << 32 | (b as u128) << 16 | a as u128
        } else {
            (b as u128) << n | a as u128
        };
        ((wide >> count) as u64 & mask(size), ((wide >> (count - 1)) & 1) as u64)
    };
    let of = top(a ^ r, size);
    (r, (flags & !STATUS) | zsp(r, size) | cf * CF | of * OF)
}

/// Whether condition code `cc` (0-15, as encoded) holds.
#[inline(always)]
pub(crate) const fn condition(cc: u8, flags: u64) -> bool {
    let hit = match cc >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => (flags & SF != 0) != (flags & OF != 0),
        _ => flags & ZF != 0 || (flags & SF != 0) != (flags & OF != 0),
    };
    hit != (cc & 1 == 1)
}
