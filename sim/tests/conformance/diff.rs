//! The difference of two lists of lines.

/// The lines of both in order: those of the first alone marked with `-`, those of the second alone with `+`. `None` if
/// there is no difference.
pub(crate) fn diff(first: &[String], second: &[String]) -> Option<String> {
    if first == second {
        return None;
    }
    // How many lines the rests from here on have in common at the most.
    let mut common = vec![vec![0; second.len() + 1]; first.len() + 1];
    for i in (0..first.len()).rev() {
        for j in (0..second.len()).rev() {
            common[i][j] = if first[i] == second[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut text = String::new();
    let mut add = |mark: &str, line: &str| {
        text.push_str(mark);
        text.push_str(line);
        text.push('\n');
    };
    while i < first.len() || j < second.len() {
        if i < first.len() && j < second.len() && first[i] == second[j] {
            add("  ", &first[i]);
            (i, j) = (i + 1, j + 1);
        } else if j == second.len() || (i < first.len() && common[i + 1][j] >= common[i][j + 1]) {
            add("- ", &first[i]);
            i += 1;
        } else {
            add("+ ", &second[j]);
            j += 1;
        }
    }
    Some(text)
}

#[test]
fn a_difference_shows_what_each_side_has_alone_between_what_both_have() {
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(diff(&lines("a b"), &lines("a b")), None);
    assert_eq!(diff(&lines("a b c d"), &lines("a c x d")).as_deref(), Some("  a\n- b\n  c\n+ x\n  d\n"));
}
