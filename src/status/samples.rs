//! Parses the samples of an exposition in the OpenMetrics text format.
//!
//! No crate fits: those for OpenMetrics have licenses that are incompatible with this project's, and
//! those for the older Prometheus format are larger than this module. Types, help texts and exemplars
//! are skipped.

use super::InvalidResponse;

/// A sample: name, labels and value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Sample {
    /// Returns the value of a label.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// Parses all samples of a complete exposition.
pub(super) fn parse(text: &str) -> Result<Vec<Sample>, InvalidResponse> {
    if !text.ends_with("# EOF\n") {
        return Err(InvalidResponse::Truncated);
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| sample(line).ok_or_else(|| InvalidResponse::Sample(line.to_owned()))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
    Some(Sample { name: name.into(), labels, value })
}

/// Parses the labels up to the closing brace. Returns them and the remaining text.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        labels.push((name.to_owned(), value));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

/// Parses a quoted value up to the closing quote. Returns it and the remaining text.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_returns_samples_with_labels() {
        let text = "# HELP a Something.\n# TYPE a counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n}\"} 7 1.5\n\
                    b 2.5e-7\nc{} +Inf\nd_bucket{le=\"+Inf\"} 3 # {id=\"1\"} 0.5\n# EOF\n";
        let samples = parse(text).unwrap();
        assert_eq!(samples.len(), 4);
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("a_total", 7.0));
        assert_eq!(samples[0].label("y"), Some("q\"\\\n}"));
        assert_eq!(samples[0].label("z"), None);
        assert_eq!(samples[1], Sample { name: "b".into(), labels: vec![], value: 2.5e-7 });
        assert_eq!(samples[2].value, f64::INFINITY);
        assert_eq!((samples[3].label("le"), samples[3].value), (Some("+Inf"), 3.0));
    }

    #[test]
    fn parse_names_an_invalid_sample() {
        for line in ["a", "a{", "a{x}", "a{x=\"1} 2", "a one", "a{x=\"1\"}2", ""] {
            let error = parse(&format!("{line}\n# EOF\n")).unwrap_err().to_string();
            assert!(error.contains(&format!("'{line}'")), "{error}");
        }
        assert!(parse("a 1\n").unwrap_err().to_string().contains("truncated"));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text: String) {
            let _ = parse(&format!("{text}\n# EOF\n"));
        }
    }
}
