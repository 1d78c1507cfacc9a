//! Templates are checked at the door: every problem with its line and what was expected.

use std::time::Duration;

use tasker::template::{Backoff, OnFailure};
use tasker::{Priority, Template};

/// The problems of a template, as "line: message".
fn problems(yaml: &str) -> Vec<String> {
    let error = Template::parse(yaml, "t.yml").expect_err("it is not valid");
    error
        .to_string()
        .lines()
        .map(|line| line.strip_prefix("t.yml:").unwrap_or(line).to_owned())
        .collect()
}

fn one_step(rest: &str) -> String {
    format!("name: t\nnamespace: n\nsteps:\n  - name: a\n    handler: H\n{rest}")
}

#[test]
fn everything_that_can_be_written_is_read() {
    let template = Template::parse(
        "
name: t
namespace: n
version: 1.2.0
description: text
priority: high
input_schema: { type: object }
steps:
  - name: a
    handler: Deep::Handler
  - name: b
    handler: H
    namespace: other
    depends_on: [a]
    retry: { max_attempts: 7, backoff: linear, base: 2s, max: 1h 30m, jitter: 0.5 }
    timeout: 90
    config: { any: [thing] }
",
        "t.yml",
    )
    .unwrap();
    let step = &template.steps[1];
    assert_eq!((template.version.as_deref(), template.priority), (Some("1.2.0"), Priority::High));
    assert_eq!(
        (step.namespace.as_str(), step.parents.as_slice(), step.timeout),
        ("other", &[0][..], Some(Duration::from_secs(90)))
    );
    assert_eq!(
        (step.retry.max_attempts, step.retry.backoff, step.retry.base),
        (Some(7), Some(Backoff::Linear), Some(Duration::from_secs(2)))
    );
    assert_eq!((step.retry.max, step.retry.jitter), (Some(Duration::from_secs(5400)), Some(0.5)));
    assert_eq!(step.config["any"][0], "thing");
}

#[test]
fn a_steps_rules_win_over_its_templates() {
    let yaml = one_step("    retry: { max_attempts: 2 }\n    dead_letters: { alert_threshold: 9 }\n  - { name: b, handler: H }\n")
        + "on_failure: fail\nretry: { max_attempts: 7, backoff: fixed, multiplier: 3 }\ndead_letters: { retention_days: 30, alert_threshold: 5 }\n";
    let template = Template::parse(&yaml, "t.yml").unwrap();
    assert_eq!(template.on_failure, OnFailure::Fail);
    let [a, b] = &template.steps[..] else { panic!("two steps") };
    assert_eq!((a.retry.max_attempts, b.retry.max_attempts), (Some(2), Some(7)));
    assert_eq!(
        (a.retry.backoff, a.retry.multiplier, a.retry.base),
        (Some(Backoff::Fixed), Some(3.0), None)
    );
    assert_eq!((a.dead_letters.alert_threshold, b.dead_letters.alert_threshold), (Some(9), Some(5)));
    assert_eq!(a.dead_letters.retention_days, Some(30));
}

#[test]
fn the_same_content_in_yaml_and_json_has_the_same_digest() {
    let yaml = Template::parse(&one_step("    timeout: 30s\n    config: { b: 1, a: 2 }\n"), "t.yml").unwrap();
    let json = r#"{"namespace": "n", "name": "t", "steps": [{"config": {"a": 2, "b": 1}, "handler": "H", "timeout": 30, "name": "a"}]}"#;
    assert_eq!(Template::parse(json, "t.json").unwrap().digest(), yaml.digest());
}

#[test]
fn a_cycle_is_named_step_by_step() {
    let yaml = "name: t\nnamespace: n\nsteps:\n  - { name: a, handler: H, depends_on: [c] }\n  - { name: b, handler: H, depends_on: [a] }\n  - { name: c, handler: H, depends_on: [b] }\n";
    assert_eq!(problems(yaml), ["4: cycle: a → b → c → a: expected no step to depend on itself"]);
    assert_eq!(
        problems(&one_step("    depends_on: [a]\n")),
        ["4: cycle: a → a: expected no step to depend on itself"]
    );
}

#[test]
fn unknown_and_duplicate_names_are_refused_where_they_stand() {
    assert_eq!(
        problems(&one_step("    depends_on: [b]\n")),
        [r#"6: step "a" depends on unknown step "b": expected one of a"#]
    );
    let twice = one_step("  - name: a\n    handler: H\n");
    assert_eq!(
        problems(&twice),
        [r#"6: duplicate step "a": expected every step to have a name of its own"#]
    );
}

#[test]
fn unknown_keys_are_refused_with_the_known_ones() {
    for (yaml, line) in [
        (one_step("    retries: 3\n"), 6),
        (one_step("    retry: { tries: 3 }\n"), 6),
        ("nam: t\n".to_owned(), 1),
    ] {
        let found = problems(&yaml);
        assert!(
            found[0].starts_with(&format!("{line}: ")) && found[0].contains("unknown field") && found[0].contains("expected"),
            "{found:?}"
        );
    }
}

#[test]
fn every_other_mistake_says_what_was_expected() {
    for (yaml, expected) in [
        (
            "name: t\nnamespace: n\nsteps:\n  - name: a\n",
            r#"4: step "a" does not say what it is: expected `handler: NameOfAHandler`, `sleep: 14d`, `wait: approved`, `each: { over: …, handler: … }` or `workflow: name`"#,
        ),
        (
            "name: t\nnamespace: n\nsteps: []\n",
            "3: steps is empty: expected at least one step",
        ),
        (
            &one_step("    timeout: soon\n"),
            r#"6: timeout is "soon": expected a duration such as 30, "30s" or "1h 30m", of at most a year"#,
        ),
        (
            &one_step("    timeout: -1\n"),
            r#"6: timeout is -1: expected a duration such as 30, "30s" or "1h 30m", of at most a year"#,
        ),
        (
            &one_step("    retry: { max_attempts: 0 }\n"),
            "6: max_attempts is 0: expected 1 to 1000",
        ),
        (
            &one_step("    retry: { backoff: slow }\n"),
            r#"6: backoff is "slow": expected fixed, linear or exponential"#,
        ),
        (&one_step("    retry: { jitter: 2 }\n"), "6: jitter is 2: expected 0 to 1"),
        (
            &one_step("on_failure: explode\n"),
            r#"6: on_failure is "explode": expected block, fail or undo"#,
        ),
        (
            &one_step("dead_letters: { retention_days: 0 }\n"),
            "6: retention_days is 0: expected 1 to 36500",
        ),
        (
            &one_step("    config: 5\n"),
            r#"6: step "a": config is a number: expected a mapping"#,
        ),
        (
            &one_step("priority: huge\n"),
            r#"6: unknown priority "huge": expected low, normal, high or urgent"#,
        ),
        (
            &one_step("").replace("namespace: n", "namespace: Team-A"),
            r#"2: namespace "Team-A": expected a-z, 0-9 and _, a letter first, at most 37 characters"#,
        ),
    ] {
        assert_eq!(problems(yaml), [expected]);
    }
    assert!(problems(&one_step("input_schema: { type: 7 }\n"))[0].starts_with("6: input_schema is not a valid JSON Schema"));
}

#[test]
fn all_problems_are_told_at_once() {
    let yaml = "name: T\nnamespace: n\nsteps:\n  - name: a\n  - { name: b, handler: H, depends_on: [x], timeout: soon }\n";
    assert_eq!(problems(yaml).len(), 4, "{:?}", problems(yaml));
}

#[test]
fn hostile_documents_are_refused_in_bounded_time() {
    let laughs = format!(
        "name: t\nnamespace: n\na: &a [x]\n{}steps: []\n",
        (0..30)
            .map(|n| format!(
                "a{n}: &a{n} [*a{0}, *a{0}]\n",
                if n == 0 { String::new() } else { (n - 1).to_string() }
            ))
            .collect::<String>()
    );
    let deep = format!("name: {}", "[".repeat(100_000));
    let many = format!(
        "name: t\nnamespace: n\nsteps:\n{}",
        (0..5_001)
            .map(|n| format!("  - {{ name: s{n}, handler: H }}\n"))
            .collect::<String>()
    );
    for yaml in [
        laughs.as_str(),
        deep.as_str(),
        many.as_str(),
        "",
        "\u{0}",
        "- 1",
        "name: [",
        "name: t\nname: t\n",
    ] {
        assert!(Template::parse(yaml, "t.yml").is_err());
    }
}

#[test]
fn limits_are_checked_with_their_template() {
    let with = |limits: &str| {
        let schema = "{ type: object, properties: { account: { type: integer } }, additionalProperties: false }";
        problems(&one_step(&format!("input_schema: {schema}\nlimits:\n  one: {limits}\n")))
    };
    for (limits, problem) in [
        ("{}", "it limits nothing: expected concurrency, rate or breaker"),
        ("{ concurrency: 0 }", "concurrency: 0 is less than the minimum of 1"),
        (
            "{ concurency: 1 }",
            "Additional properties are not allowed ('concurency' was unexpected)",
        ),
        (
            "{ rate: 1, handler: Other }",
            "handler is \"Other\": no step of the namespace n has it",
        ),
        ("{ rate: 1, template: t }", "template is given: it concerns the steps of its own"),
        (
            "{ rate: 1, key: acount }",
            "key is \"acount\": the input has no acount, by input_schema, but account",
        ),
    ] {
        assert_eq!(with(limits), [format!("8: limit \"one\": {problem}")]);
    }
    let good = Template::parse(&one_step("limits: { one: { concurrency: 2, key: a.b } }\n"), "t.yml").unwrap();
    assert_eq!(good.limits["one"].key.as_deref(), Some("a.b"));
}
