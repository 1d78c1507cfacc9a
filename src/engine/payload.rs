//! How large the JSON may be that comes from outside: as it is sent, and as PostgreSQL writes it.

use crate::error::{Error, Result};

/// How many bytes of JSON an input, a result or a checkpoint may have. What is larger belongs in a table or a file, with the JSON saying where.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// How many digits a number may have. PostgreSQL keeps numbers as digits, without exponents, so that a few bytes can become 131,072.
pub const MAX_DIGITS: usize = 1_000;

/// How many bytes the results may have altogether that one step depends on.
pub const MAX_RESULTS_BYTES: i64 = 1 << 28;

/// Errors: [`Error::TooLarge`] when `json` is more than [`MAX_PAYLOAD_BYTES`], or has a number of more than [`MAX_DIGITS`]; `what` names it.
pub fn check_payload(what: &str, json: &str) -> Result<()> {
    let bytes = json.len()
        + digits_left_out(json).map_err(|number| {
            Error::TooLarge(format!(
                "{what} contains a number of more than {MAX_DIGITS} digits ({}…): pass it as a string",
                number.chars().take(30).collect::<String>()
            ))
        })?;
    if bytes > MAX_PAYLOAD_BYTES {
        return Err(Error::TooLarge(format!(
            "{what} has {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are accepted"
        )));
    }
    Ok(())
}

/// How many digits the exponents of this JSON stand for. Err: the first number with too many digits.
fn digits_left_out(json: &str) -> std::result::Result<usize, &str> {
    let bytes = json.as_bytes();
    let (mut at, mut in_string, mut left_out) = (0, false, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'0'..=b'9' if !in_string => {
                let length = bytes[at..]
                    .iter()
                    .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .unwrap_or(bytes.len() - at);
                let number = &json[at..at + length];
                let exponent = number
                    .split(['e', 'E'])
                    .nth(1)
                    .map_or(0, |exponent| exponent.trim_start_matches(['+', '-']).parse().unwrap_or(usize::MAX));
                if number.len().saturating_add(exponent) > MAX_DIGITS {
                    return Err(number);
                }
                left_out += exponent;
                at += length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(left_out)
}

/// Whether a string in this JSON has the character U+0000; a backslash that is itself escaped begins no escape.
pub(crate) fn has_nul(json: &str) -> bool {
    let backslashes = |at: usize| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count();
    json.match_indices("\\u0000").any(|(at, _)| backslashes(at) % 2 == 0)
}
