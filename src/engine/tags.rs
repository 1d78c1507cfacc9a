//! Tags as a search writes them: `customer=42,region=eu`. A backslash stands before a comma, an equals sign or a backslash of a name or
//! a value.

use std::collections::BTreeMap;

/// Reads them. Errors: what is expected, where one is no NAME=VALUE.
pub(crate) fn read_tags(text: &str) -> Result<BTreeMap<String, String>, &'static str> {
    let mut tags = BTreeMap::new();
    let (mut name, mut part) = (None, String::new());
    let mut characters = text.chars().chain([',']);
    while let Some(character) = characters.next() {
        match character {
            '\\' => part.extend(characters.next()),
            '=' if name.is_none() => name = Some(std::mem::take(&mut part)),
            ',' => {
                let value = std::mem::take(&mut part);
                match name.take() {
                    Some(name) => tags.insert(name.trim().to_owned(), value.trim().to_owned()),
                    None if value.trim().is_empty() => continue,
                    None => return Err("tag: expected NAME=VALUE"),
                };
            }
            other => part.push(other),
        }
    }
    Ok(tags)
}

/// One as [`read_tags`] reads it.
pub(crate) fn write_tag(name: &str, value: &str) -> String {
    format!("{}={}", escaped(name, "\\,="), escaped(value, "\\,"))
}

fn escaped(text: &str, marked: &str) -> String {
    let marks = |character| marked.contains(character).then_some('\\').into_iter().chain([character]);
    text.chars().flat_map(marks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_they_are_written_whatever_is_in_them() {
        let tags = [("customer", "42"), ("a,b=c", "d,e=f\\"), ("empty", "")];
        let written: Vec<String> = tags.iter().map(|(name, value)| write_tag(name, value)).collect();
        let expected = tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(read_tags(&written.join(",")), Ok(expected));
        assert_eq!(
            read_tags(" customer=42 , "),
            Ok(BTreeMap::from([("customer".to_owned(), "42".to_owned())]))
        );
        assert!(read_tags("customer").is_err() && read_tags("a=1,b").is_err());
    }
}
