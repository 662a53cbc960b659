//! Text of others (labels, names of files, what plugins say) as it is safe to show.

use std::borrow::Cow;

/// Characters that turn the direction of what follows: what is read is not what is there (Boucher and Anderson, "Trojan Source:
/// Invisible Vulnerabilities", USENIX Security 2023).
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with control characters, which a terminal obeys, and those that turn its direction shown as `\u{1b}`. Ends of
/// lines and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| (c.is_control() && c != '\n' && c != '\t') || turns(c);
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// The first `most` characters of a text, and how many more there are.
pub fn short(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{} ... ({} more characters)", &text[..end], text[end..].chars().count())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(plain("a\tb\nc \u{e4}"), "a\tb\nc \u{e4}");
        assert_eq!(plain("\u{1b}[31m\r\u{202e}x\u{7f}\u{9b}"), "\\u{1b}[31m\\u{d}\\u{202e}x\\u{7f}\\u{9b}");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(short("\u{e4}\u{e4}\u{e4}", 3), "\u{e4}\u{e4}\u{e4}");
        assert_eq!(short("\u{e4}\u{e4}\u{e4}\u{e4}", 2), "\u{e4}\u{e4} ... (2 more characters)");
    }
}
