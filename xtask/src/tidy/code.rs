//! Rust source without comments and string literals, so that rules see only code.

/// Returns the lines of a source with comments and the contents of string and character literals blanked.
pub(super) fn lines(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skip(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        // Blank what is skipped, but keep its line breaks: line numbers must not shift.
        out.push(' ');
        out.extend(chars[at..end].iter().filter(|c| **c == '\n'));
        at = end;
    }
    out.lines().map(str::to_owned).collect()
}

/// Returns the end of the comment or literal that begins here, or `at` if none does.
fn skip(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    match (chars[at], next(1)) {
        ('/', '/') => find(chars, at, |rest| rest[0] == '\n').unwrap_or(chars.len()),
        ('/', '*') => find(chars, at + 2, |rest| rest.starts_with(&['*', '/'])).map_or(chars.len(), |end| end + 2),
        ('"', _) => end_of_string(chars, at + 1),
        ('r', '"' | '#') if at == 0 || !is_word(chars[at - 1]) || chars[at - 1] == 'b' => end_of_raw(chars, at),
        // A lifetime has no closing quote within two characters; a character literal does.
        ('\'', '\\') => find(chars, at + 3, |rest| rest[0] == '\'').map_or(chars.len(), |end| end + 1),
        ('\'', _) if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn end_of_raw(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        // A raw identifier such as `r#type`.
        return at;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    find(chars, at + 2 + hashes, |rest| rest.starts_with(&close)).map_or(chars.len(), |end| end + close.len())
}

fn find(chars: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> Option<usize> {
    (from..chars.len()).find(|at| found(&chars[*at..]))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns whether a line has an identifier that satisfies the condition; what follows the identifier is the
/// condition's second argument.
pub(super) fn has_word(line: &str, condition: impl Fn(&str, &str) -> bool) -> bool {
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        let word_and_rest = &rest[start..];
        let end = word_and_rest.find(|c| !is_word(c)).unwrap_or(word_and_rest.len());
        let (word, after) = word_and_rest.split_at(end);
        if condition(word, after) {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &[&str]) {
        let squeezed: Vec<String> =
            lines(source).iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(squeezed, expected);
    }

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        check("let a = \"x // y\"; // z\nb", &["let a = ;", "b"]);
        check("/* a\nb */ c", &["", "c"]);
        check("f(\"a\nb\"); g", &["f(", "); g"]);
        check("r#\"a \"quoted\" b\"# x\nr#type", &["x", "r#type"]);
        check("'\"' 'a' '\\'' &'a str \"s\"", &["&'a str"]);
        check("\"\\\"\" x", &["x"]);
    }

    #[test]
    fn words_have_borders() {
        assert!(has_word("use aya::maps;", |word, rest| word == "aya" && rest.starts_with("::")));
        assert!(!has_word("use ayah::maps;", |word, _| word == "aya"));
        assert!(!has_word("my_aya", |word, _| word == "aya"));
    }
}
