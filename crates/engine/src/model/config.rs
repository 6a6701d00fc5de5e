//! Reading a `config.json` key by key, each failure naming the file and the key.

use std::path::Path;

use nibble_kernels::rope::RopeScaling;
use serde_json::{Map, Value};

use super::ModelError;

/// An object of a configuration file.
#[derive(Clone, Copy)]
pub(super) struct Config<'a> {
    path: &'a Path,
    values: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// The top level of the file at `path`.
    pub(super) fn new(value: &'a Value, path: &'a Path) -> Result<Self, ModelError> {
        match value {
            Value::Object(values) => Ok(Self { path, values }),
            other => Err(ModelError::BadValue {
                path: path.to_owned(),
                key: "(the whole file)".into(),
                found: kind(other).into(),
                expected: "an object".into(),
            }),
        }
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether the key is there, be it with null.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The value; null counts as absent, as the reference implementation writes it.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { path: self.path.to_owned(), key: key.into() }
    }

    pub(super) fn bad(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::BadValue {
            path: self.path.to_owned(),
            key: key.into(),
            found: self.shown(key),
            expected: expected.into(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, supported: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            key: key.into(),
            found: self.shown(key),
            supported: supported.into(),
        }
    }

    fn shown(&self, key: &str) -> String {
        self.values.get(key).map_or_else(|| "absent".into(), Value::to_string)
    }

    /// A whole number from 1.
    pub(super) fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) if count > 0 => Ok(Some(count)),
            _ => Err(self.bad(key, "a whole number from 1")),
        }
    }

    /// A whole number from 1 that must be there.
    pub(super) fn count(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number above zero.
    pub(super) fn optional_positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.bad(key, "a number above zero")),
        }
    }

    fn positive(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.bad(key, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "a string")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_str).collect())
            .map(Some)
            .ok_or_else(|| self.bad(key, "a list of strings"))
    }

    fn object(&self, key: &str) -> Result<Option<Config<'a>>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Config { path: self.path, values })),
            Some(_) => Err(self.bad(key, "an object")),
        }
    }
}

/// Base and scaling of the rotation, from `rope_theta` and `rope_scaling`, or from the one object
/// `rope_parameters` that newer files have in their place.
pub(super) fn rope(
    config: Config<'_>,
    max_context: usize,
    default_base: f64,
) -> Result<(f64, RopeScaling), ModelError> {
    let parameters = match config.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling")?,
    };
    let base = match parameters.map(|inner| inner.optional_positive("rope_theta")).transpose()? {
        Some(Some(base)) => base,
        _ => config.optional_positive("rope_theta")?.unwrap_or(default_base),
    };
    for holder in [Some(config), parameters].into_iter().flatten() {
        if holder.optional_positive("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
            return Err(holder.unsupported("partial_rotary_factor", "1"));
        }
    }
    let scaling = match parameters {
        Some(parameters) => rope_scaling(parameters, max_context)?,
        None => RopeScaling::None,
    };
    Ok((base, scaling))
}

fn rope_scaling(config: Config<'_>, max_context: usize) -> Result<RopeScaling, ModelError> {
    // Files from before 2024 call it `type`.
    let key = if config.value("rope_type").is_some() { "rope_type" } else { "type" };
    let original = config.optional_count("original_max_position_embeddings")?;
    let original_context = original.unwrap_or(max_context);
    Ok(match config.text(key)? {
        Some("default") => RopeScaling::None,
        // Newer files may leave the type of an unscaled rotation out.
        None if config.value("factor").is_none() => RopeScaling::None,
        None => return Err(config.missing("rope_type")),
        Some("linear") => RopeScaling::Linear { factor: config.positive("factor")? },
        Some("llama3") => {
            let low_frequency_factor = config.positive("low_freq_factor")?;
            let high_frequency_factor = config.positive("high_freq_factor")?;
            if high_frequency_factor <= low_frequency_factor {
                return Err(config.bad("high_freq_factor", "above low_freq_factor"));
            }
            RopeScaling::Llama3 {
                factor: config.positive("factor")?,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            }
        }
        Some("yarn") => {
            let factor = match config.optional_positive("factor")? {
                Some(factor) => factor,
                None => max_context as f64 / original_context as f64,
            };
            let attention_factor = match config.optional_positive("attention_factor")? {
                Some(attention_factor) => Some(attention_factor),
                None => {
                    let mscale = config.optional_positive("mscale")?;
                    let mscale_all_dim = config.optional_positive("mscale_all_dim")?;
                    mscale.zip(mscale_all_dim).map(|(of_part, of_all)| {
                        yarn_magnitude(factor, of_part) / yarn_magnitude(factor, of_all)
                    })
                }
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: config.optional_positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: config.optional_positive("beta_slow")?.unwrap_or(1.0),
                original_context,
                attention_factor,
                truncate: config.flag("truncate", true)?,
            }
        }
        Some(_) => return Err(config.unsupported(key, "default, linear, llama3, yarn")),
    })
}

/// YaRN's growth of attention's magnitude with the context (Peng et al., 2023, section 3.4), with
/// the weight that some files give it.
fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
