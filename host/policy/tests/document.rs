//! `docs/policy.md` has the tables that the program has. `VIV_WRITE_DOCS=1` writes them.

use std::fmt::Write as _;

use policy::{balanced, embedding_table, guard_table};

fn guard() -> String {
    let mut table = "| range | what it is | a rule opens it |\n|---|---|---|\n".to_owned();
    for range in guard_table() {
        let opens = if range.openable { "yes" } else { "never" };
        writeln!(table, "| `{}` | {} | {opens} |", range.network, range.what).unwrap();
    }
    table
}

fn embedded() -> String {
    let mut table = "| range | what it is | the IPv4 address is at |\n|---|---|---|\n".to_owned();
    table.push_str("| `::ffff:0:0/96` | IPv4-mapped (RFC 4291); is an IPv4 address everywhere | bit 96 |\n");
    for form in embedding_table() {
        let turned = if form.inverted { ", its bits turned round" } else { "" };
        writeln!(table, "| `{}` | {} | bit {}{turned} |", form.network, form.what, form.offset).unwrap();
    }
    table
}

fn presets() -> String {
    let mut table = String::new();
    for group in &balanced().groups {
        writeln!(table, "### {}\n{}.\n\n| hosts | requests | why |\n|---|---|---|", group.id, group.title)
            .unwrap();
        for entry in &group.entries {
            let hosts: Vec<String> = entry.hosts.iter().map(|host| format!("`{host}`")).collect();
            let requests = match (&entry.methods, entry.paths.as_slice()) {
                (None, []) => "all, passed through".to_owned(),
                (methods, paths) => {
                    let methods = methods.map_or_else(|| "ANY".to_owned(), |methods| methods.to_string());
                    let paths: Vec<String> = paths.iter().map(|path| format!(" `{path}`")).collect();
                    methods + &paths.join(",")
                }
            };
            writeln!(table, "| {} | {requests} | {} |", hosts.join(" "), entry.reason).unwrap();
        }
        table.push('\n');
    }
    table.push_str("Ports are 443 where none is written.\n");
    table
}

fn withheld() -> String {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for one in &balanced().withheld {
        let host = format!("`{}`", one.host);
        match reasons.iter_mut().find(|(reason, _)| *reason == one.reason) {
            Some((_, hosts)) => hosts.push(host),
            None => reasons.push((&one.reason, vec![host])),
        }
    }
    let mut table = "| hosts | why |\n|---|---|\n".to_owned();
    for (reason, hosts) in reasons {
        writeln!(table, "| {} | {reason} |", hosts.join(" ")).unwrap();
    }
    table
}

#[test]
fn the_document_has_the_programs_tables() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut expected = text.clone();
    for (name, table) in
        [("guard", guard()), ("embedded", embedded()), ("balanced", presets()), ("withheld", withheld())]
    {
        let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let start = expected.find(&open).unwrap() + open.len();
        let end = expected.find(&close).unwrap();
        expected.replace_range(start..end, &table);
    }
    if std::env::var_os("VIV_WRITE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected, "run this test with VIV_WRITE_DOCS=1");
}
