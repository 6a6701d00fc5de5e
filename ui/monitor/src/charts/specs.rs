//! What each chart shows.

use egui_plot::GridMark;

use crate::{history::History, theme::Ink, words};

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Decimal,
    Scientific,
    Count,
    Bytes,
}

impl Unit {
    pub fn write(self, value: f64) -> String {
        match self {
            Self::Decimal => words::decimal(value),
            Self::Scientific => words::scientific(value),
            Self::Count => words::count(value),
            Self::Bytes => words::bytes(value),
        }
    }

    /// About as wide as anything that is written beside a title; room is kept for it.
    pub const fn widest(self) -> &'static str {
        match self {
            Self::Decimal => "00.0000",
            Self::Scientific => "0.00e-0",
            Self::Count => "000,000",
            Self::Bytes => "00.0 GiB",
        }
    }

    /// Label of a mark of an axis whose largest value is `largest`.
    pub fn write_mark(self, mark: GridMark, largest: f64) -> String {
        match self {
            Self::Decimal if mark.step_size < 1000.0 => {
                let n_digits = (-mark.step_size.log10().floor()).clamp(0.0, 6.0) as usize;
                format!("{:.n_digits$}", mark.value)
            }
            Self::Decimal => format!("{:.0e}", mark.value),
            Self::Scientific if mark.value == 0.0 => "0".into(),
            Self::Scientific => format!("{:.1e}", mark.value).replace("e-", "e−"),
            Self::Count => words::count(mark.value),
            Self::Bytes => {
                let (unit, name) = words::byte_unit(largest);
                let n_digits = (-(mark.step_size / unit).log10().floor()).clamp(0.0, 3.0) as usize;
                format!("{:.n_digits$} {name}", mark.value / unit)
            }
        }
    }

    /// The unit in which marks are round numbers.
    pub fn size(self, largest: f64) -> f64 {
        if self == Self::Bytes { words::byte_unit(largest).0 } else { 1.0 }
    }
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pen {
    /// Behind its average.
    Faint,
    /// What is looked at.
    Plain,
    /// With a mark at every value.
    Marked,
}

impl Pen {
    pub const fn width(self) -> f32 {
        match self {
            Self::Faint => 1.0,
            Self::Plain | Self::Marked => 2.0,
        }
    }
}

#[derive(Debug)]
pub struct LineSpec {
    pub name: &'static str,
    pub ink: Ink,
    pub pen: Pen,
    /// Named only once it has values: not every machine has them.
    pub optional: bool,
    /// Steps and values.
    pub values: fn(&History) -> (&[f64], &[f64]),
}

#[derive(Debug)]
pub struct ChartSpec {
    pub title: &'static str,
    pub unit: Unit,
    pub from_zero: bool,
    /// Whether the plan's peak is drawn.
    pub planned: bool,
    pub lines: &'static [LineSpec],
}

pub const CHARTS: [ChartSpec; 5] = [
    ChartSpec {
        title: "Loss",
        unit: Unit::Decimal,
        from_zero: false,
        planned: false,
        lines: &[
            LineSpec {
                name: "each step",
                ink: Ink::Loss,
                pen: Pen::Faint,
                optional: false,
                values: |history| (&history.steps, &history.loss),
            },
            LineSpec {
                name: "smoothed",
                ink: Ink::Loss,
                pen: Pen::Plain,
                optional: false,
                values: |history| (&history.steps, &history.smooth_loss),
            },
            LineSpec {
                name: "held-out",
                ink: Ink::Eval,
                pen: Pen::Marked,
                optional: false,
                values: |history| (&history.eval.steps, &history.eval.values),
            },
        ],
    },
    ChartSpec {
        title: "Memory",
        unit: Unit::Bytes,
        from_zero: true,
        planned: true,
        lines: &[
            LineSpec {
                name: "host",
                ink: Ink::HostMemory,
                pen: Pen::Plain,
                optional: false,
                values: |history| (&history.steps, &history.host_bytes),
            },
            LineSpec {
                name: "device",
                ink: Ink::DeviceMemory,
                pen: Pen::Plain,
                optional: false,
                values: |history| (&history.steps, &history.device_bytes),
            },
            LineSpec {
                name: "card, all programs",
                ink: Ink::Workspace,
                pen: Pen::Plain,
                optional: true,
                values: |history| (&history.card_bytes.steps, &history.card_bytes.values),
            },
        ],
    },
    ChartSpec {
        title: "Tokens a second",
        unit: Unit::Count,
        from_zero: true,
        planned: false,
        lines: &[
            LineSpec {
                name: "each step",
                ink: Ink::Throughput,
                pen: Pen::Faint,
                optional: false,
                values: |history| (&history.steps, &history.throughput),
            },
            LineSpec {
                name: "smoothed",
                ink: Ink::Throughput,
                pen: Pen::Plain,
                optional: false,
                values: |history| (&history.steps, &history.smooth_throughput),
            },
        ],
    },
    ChartSpec {
        title: "Learning rate",
        unit: Unit::Scientific,
        from_zero: true,
        planned: false,
        lines: &[LineSpec {
            name: "",
            ink: Ink::LearningRate,
            pen: Pen::Plain,
            optional: false,
            values: |history| (&history.steps, &history.learning_rate),
        }],
    },
    ChartSpec {
        title: "Gradient norm",
        unit: Unit::Decimal,
        from_zero: true,
        planned: false,
        lines: &[
            LineSpec {
                name: "each step",
                ink: Ink::Gradients,
                pen: Pen::Faint,
                optional: false,
                values: |history| (&history.steps, &history.gradient_norm),
            },
            LineSpec {
                name: "smoothed",
                ink: Ink::Gradients,
                pen: Pen::Plain,
                optional: false,
                values: |history| (&history.steps, &history.smooth_gradient_norm),
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_in_the_axis_unit() {
        let mark = |value, step_size| GridMark { value, step_size };
        let mib = 1_048_576.0;
        assert_eq!(Unit::Bytes.write_mark(mark(10.0 * mib, 10.0 * mib), 33.0 * mib), "10 MiB");
        assert_eq!(Unit::Bytes.write_mark(mark(0.5 * mib, 0.5 * mib), 2.0 * mib), "0.5 MiB");
        assert_eq!(Unit::Decimal.write_mark(mark(4.0, 0.5), 8.0), "4.0");
        assert_eq!(Unit::Decimal.write_mark(mark(20.0, 20.0), 90.0), "20");
        assert_eq!(Unit::Scientific.write_mark(mark(1e-4, 5e-5), 2e-4), "1.0e−4");
        assert_eq!(Unit::Count.write_mark(mark(4000.0, 1000.0), 5e3), "4,000");
    }
}
