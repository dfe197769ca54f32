//! Words that a guest may have chosen, made harmless for a terminal: one line, no control characters, of bounded length.

/// The longest text that is taken over from a guest or its vmm into a message, in characters.
pub const LONGEST: usize = 400;

/// `text` with control characters, and those that turn the direction of writing, as `\n` or `\u{1b}`. What is longer than
/// `most` characters ends in an ellipsis.
pub fn escaped(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index >= most {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\t' | '\r' => out.extend(c.escape_default()),
            c if c.is_control() || is_format(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Invisible characters that move or hide others: line and paragraph separators, and the bidirectional ones.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_by_a_guest() {
        let hostile = "a\x1b]52;c;eA==\x07\r\nerror: forged\u{9b}2J\u{202e}x\x7f";
        let said = escaped(hostile, LONGEST);
        assert_eq!(said, "a\\u{1b}]52;c;eA==\\u{7}\\r\\nerror: forged\\u{9b}2J\\u{202e}x\\u{7f}");
        assert_eq!(escaped("Ünï/日本 ~", LONGEST), "Ünï/日本 ~");
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(escaped(&"日".repeat(10), 3), "日日日…");
        assert_eq!(escaped("abc", 3), "abc");
    }
}
