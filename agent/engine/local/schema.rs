//! Whether a text may still become a JSON value of a schema: what a function's arguments are held to while they are drawn.
//!
//! The text is read from its beginning each time, which for arguments of some hundred bytes costs less than a token by far. Of JSON Schema it
//! knows `type` (one or many), `properties`, `required`, `items`, `enum`, `const`, `anyOf` and `oneOf`; what else a schema says is not held to.

use serde_json::Value;

/// Values may stand this deep in each other.
const DEPTH: usize = 16;

/// What a text is of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit<'a> {
    /// It begins one.
    Open,
    /// It is one, and this comes behind it.
    Whole(&'a str),
    /// It can never be one.
    Not,
}

/// Reads one value of this schema.
pub(super) fn fit<'a>(schema: &Value, text: &'a str) -> Fit<'a> {
    value(schema, text, DEPTH)
}

/// Goes on behind a whole; what is open or wrong stays so.
macro_rules! behind {
    ($fit:expr) => {
        match $fit {
            Fit::Whole(rest) => rest,
            other => return other,
        }
    };
}

/// The better of two readings.
fn either<'a>(a: Fit<'a>, b: Fit<'a>) -> Fit<'a> {
    match (a, b) {
        (Fit::Whole(_), _) | (Fit::Open, Fit::Not) => a,
        _ => b,
    }
}

fn value<'a>(schema: &Value, text: &'a str, depth: usize) -> Fit<'a> {
    let Some(depth) = depth.checked_sub(1) else { return Fit::Not };
    let any_of = |readings: &mut dyn Iterator<Item = Fit<'a>>| readings.fold(Fit::Not, either);
    if let Some(constant) = schema.get("const") {
        return literal(&constant.to_string(), text);
    }
    if let Some(Value::Array(allowed)) = schema.get("enum") {
        return any_of(&mut allowed.iter().map(|one| literal(&one.to_string(), text)));
    }
    if let Some(Value::Array(schemas)) = schema.get("anyOf").or_else(|| schema.get("oneOf")) {
        return any_of(&mut schemas.iter().map(|schema| value(schema, text, depth)));
    }
    match schema.get("type") {
        Some(Value::String(kind)) => of_kind(kind, schema, text, depth),
        Some(Value::Array(kinds)) => {
            any_of(&mut kinds.iter().map(|kind| of_kind(kind.as_str().unwrap_or_default(), schema, text, depth)))
        }
        _ if schema.get("properties").is_some() => object(schema, text, depth),
        _ => {
            let kinds = ["object", "array", "string", "number", "boolean", "null"];
            any_of(&mut kinds.iter().map(|kind| of_kind(kind, schema, text, depth)))
        }
    }
}

fn of_kind<'a>(kind: &str, schema: &Value, text: &'a str, depth: usize) -> Fit<'a> {
    match kind {
        "object" => object(schema, text, depth),
        "array" => array(schema, text, depth),
        "string" => string(text),
        "integer" => number(text, false),
        "number" => number(text, true),
        "boolean" => either(literal("true", text), literal("false", text)),
        "null" => literal("null", text),
        _ => Fit::Not,
    }
}

fn literal<'a>(literal: &str, text: &'a str) -> Fit<'a> {
    match text.strip_prefix(literal) {
        Some(rest) => Fit::Whole(rest),
        None if literal.starts_with(text) => Fit::Open,
        None => Fit::Not,
    }
}

/// At most one space: white space says nothing, and a model may never end it.
fn space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

fn string(text: &str) -> Fit<'_> {
    let inside = behind!(literal("\"", text));
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Fit::Whole(&inside[at + 1..]),
            '\\' => match chars.next() {
                Some((_, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't')) => {}
                Some((_, 'u')) => {
                    for _ in 0..4 {
                        match chars.next() {
                            Some((_, digit)) if digit.is_ascii_hexdigit() => {}
                            Some(_) => return Fit::Not,
                            None => return Fit::Open,
                        }
                    }
                }
                Some(_) => return Fit::Not,
                None => return Fit::Open,
            },
            c if c.is_control() => return Fit::Not,
            _ => {}
        }
    }
    Fit::Open
}

/// Digits, no more than a double holds.
fn number(text: &str, fractions: bool) -> Fit<'_> {
    let length =
        text.bytes().take_while(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E')).count();
    let (digits, rest) = text.split_at(length);
    let is_one = |text: &str| serde_json::from_str::<serde_json::Number>(text).is_ok_and(|n| fractions || !n.is_f64());
    // What a number may lack at its end.
    let becomes_one = || ["", "0", "0e0"].iter().any(|more| is_one(&format!("{digits}{more}")));
    match rest.is_empty() {
        true if length <= 17 && becomes_one() => Fit::Open,
        false if is_one(digits) => Fit::Whole(rest),
        _ => Fit::Not,
    }
}

fn array<'a>(schema: &Value, text: &'a str, depth: usize) -> Fit<'a> {
    let any = Value::Null;
    let items = schema.get("items").unwrap_or(&any);
    let mut text = space(behind!(literal("[", text)));
    if let Some(rest) = text.strip_prefix(']') {
        return Fit::Whole(rest);
    }
    loop {
        text = space(behind!(value(items, text, depth)));
        match text.strip_prefix(']') {
            Some(rest) => return Fit::Whole(rest),
            None => text = space(behind!(literal(",", text))),
        }
    }
}

fn object<'a>(schema: &Value, text: &'a str, depth: usize) -> Fit<'a> {
    let properties = schema.get("properties").and_then(Value::as_object).filter(|properties| !properties.is_empty());
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let closed = schema.get("additionalProperties").is_some_and(|more| more == false) || properties.is_some();
    let is_known = |name: &str| properties.is_some_and(|known| known.contains_key(name));
    let mut seen: Vec<String> = Vec::new();
    let mut text = space(behind!(literal("{", text)));
    loop {
        let is_done = required.iter().filter(|name| is_known(name)).all(|name| seen.iter().any(|seen| seen == name));
        if is_done && let Some(rest) = text.strip_prefix('}') {
            return Fit::Whole(rest);
        }
        if !seen.is_empty() {
            text = space(behind!(literal(",", text)));
        }
        let left = properties.into_iter().flat_map(|p| p.keys()).filter(|name| !seen.contains(name));
        let key = if closed {
            left.map(|name| literal(&Value::from(name.as_str()).to_string(), text)).fold(Fit::Not, either)
        } else {
            string(text)
        };
        let rest = behind!(key);
        let name: String = serde_json::from_str(&text[..text.len() - rest.len()]).unwrap_or_default();
        let any = Value::Null;
        let inner = properties.and_then(|known| known.get(&name)).unwrap_or(&any);
        text = space(behind!(literal(":", rest)));
        text = space(behind!(value(inner, text, depth)));
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn light() -> Value {
        json!({"type": "object", "required": ["room", "on"], "properties": {
            "room": {"enum": ["red", "green"]}, "on": {"type": "boolean"}, "level": {"type": ["integer", "null"]},
            "names": {"type": "array", "items": {"type": "string"}}, "more": {"anyOf": [{"type": "number"}, {"type": "object"}]}}})
    }

    #[test]
    fn what_fits_and_what_does_not() {
        let schema = light();
        for text in [
            r#"{"room": "red", "on": true}"#,
            r#"{"on":false,"room":"green","level":null,"names":["a\"b","\u00e9"],"more":-1.5e3}"#,
            r#"{"on": true, "room": "red", "more": {"any": [1, {"thing": null}]}, "level": 7}"#,
        ] {
            assert_eq!(fit(&schema, text), Fit::Whole(""), "{text}");
            assert_eq!(fit(&schema, &format!("{text}}}")), Fit::Whole("}"));
            for end in 0..text.len() {
                assert_eq!(fit(&schema, &text[..end]), Fit::Open, "{}", &text[..end]);
            }
        }
        for text in [
            "[",
            "{}",
            r#"{"room": "blue"#,
            r#"{"room": "red"}"#,
            r#"{"room": "red", "room"#,
            r#"{"colour"#,
            r#"{"on": 1"#,
            r#"{"level": 1.5"#,
            r#"{"level": 12345678901234567890"#,
            "{  ",
            "{\n",
            r#"{"names": ["a\q"#,
            r#"{"on": true,}"#,
        ] {
            assert_eq!(fit(&schema, text), Fit::Not, "{text}");
        }
        assert_eq!(fit(&json!({}), &"[".repeat(100)), Fit::Not, "too deep");
        assert_eq!(fit(&json!({"type": "object"}), r#"{"free": 1}"#), Fit::Whole(""));
    }

    proptest! {
        /// I8, and what is whole is JSON.
        #[test]
        fn any_text_is_survived(text in r#"[\[\]{}",:0-9a-z\\ .-]{0,40}"#) {
            for schema in [light(), json!(null), json!({"type": 7, "enum": []})] {
                if let Fit::Whole(rest) = fit(&schema, &text) {
                    let own = &text[..text.len() - rest.len()];
                    prop_assert!(serde_json::from_str::<Value>(own).is_ok(), "{own}");
                }
            }
        }
    }
}
