//! The table and the JSON.

use serde_json::{json, Map, Value};

type Row = (String, Vec<(String, Value)>);

pub(crate) struct Report {
    machine: Value,
    /// Title, and its rows: name, and (column, figure).
    sections: Vec<(String, Vec<Row>)>,
    columns: Vec<String>,
    ratios: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(machine: Value) -> Report {
        for (name, value) in machine.as_object().into_iter().flatten() {
            println!("{name:<12}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        Report {
            machine,
            sections: Vec::new(),
            columns: Vec::new(),
            ratios: Map::new(),
        }
    }

    pub(crate) fn section(&mut self, title: &str, columns: &[&str]) {
        println!("\n{title}");
        println!(
            "  {:<30}{}",
            "",
            columns.iter().map(|column| format!("{column:>19}")).collect::<String>()
        );
        self.sections.push((title.to_owned(), Vec::new()));
        self.columns = columns.iter().map(|column| (*column).to_owned()).collect();
    }

    pub(crate) fn row(&mut self, name: &str, figures: &[Value]) {
        println!(
            "  {name:<30}{}",
            figures.iter().map(|figure| format!("{:>19}", number(figure))).collect::<String>()
        );
        let row = self.columns.iter().cloned().zip(figures.iter().cloned()).collect();
        if let Some((_, rows)) = self.sections.last_mut() {
            rows.push((name.to_owned(), row));
        }
    }

    /// The first figure of one row divided by that of another, where both were measured. A row is named by a part of its section's title.
    pub(crate) fn ratio(&mut self, name: &str, of: (&str, &str), to: (&str, &str)) {
        let figure = |(section, row): (&str, &str)| {
            let (_, rows) = self
                .sections
                .iter()
                .find(|(title, _)| title.contains(section) && !title.contains("Latency"))?;
            rows.iter().find(|(name, _)| name == row)?.1.first()?.1.as_f64()
        };
        if let (Some(of), Some(to)) = (figure(of), figure(to)) {
            if self.ratios.is_empty() {
                println!("\nRatios");
            }
            println!("  {name:<40}{:>8.0} %", 100.0 * of / to);
            self.ratios.insert(name.to_owned(), json!(of / to));
        }
    }

    /// Writes the JSON.
    pub(crate) fn finish(self) {
        let sections: Map<String, Value> = self
            .sections
            .into_iter()
            .map(|(title, rows)| {
                (
                    title,
                    Value::Object(rows.into_iter().map(|(name, row)| (name, row.into_iter().collect())).collect()),
                )
            })
            .collect();
        let all = json!({ "machine": self.machine, "sections": sections, "ratios": self.ratios });
        let file = format!("bench/results/{}.json", chrono::Utc::now().format("%Y%m%d-%H%M%S"));
        std::fs::create_dir_all("bench/results").expect("bench/results can be made");
        std::fs::write(&file, format!("{all:#}\n")).expect("the report can be written");
        println!("\n{file}");
    }
}

/// With thousands separated, and as many decimals as matter.
fn number(value: &Value) -> String {
    let Some(figure) = value.as_f64() else { return value.to_string() };
    if figure < 100.0 {
        return format!("{figure:.2}");
    }
    let digits = format!("{figure:.0}");
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}
