//! Arguments of processes without their secrets. Pure.
//!
//! A pattern names what holds a secret; its value is replaced by [`CUT`]. Patterns without a space are names, compared with
//! `*` for anything and without regard to case, `-` and `_` being the same: `NAME=VALUE` and `--NAME=VALUE` lose the
//! value, `NAME: VALUE` (a header) all that follows, and `--NAME` the next argument. A pattern of two words is a
//! program and an option of it: `mysql -p` cuts `-pVALUE`, `curl -u` cuts `-uVALUE`, `-suVALUE` and the argument after `-u` or
//! `-su`; `curl --user` cuts `--user=VALUE` and the argument after `--user`.
//! Passwords in URLs (`scheme://user:password@host`) are always cut.
//!
//! This is a sieve, not a proof: a secret that is a bare argument of a program nobody named passes. Where that matters
//! the configuration reports no arguments at all.

/// What stands for a secret.
pub const CUT: &str = "***";
/// Most bytes of a command line that are kept. What is longer ends in `…`.
pub const MAX_ARGS_BYTES: usize = 1_024;
/// Most bytes of a command line that are looked at.
pub const MAX_READ_BYTES: usize = 16 << 10;

/// What is cut unless the configuration says otherwise.
pub const DEFAULT_PATTERNS: &[&str] = &[
    "*password*",
    "*passwd*",
    "*passphrase*",
    "*_pwd",
    "pwd",
    "*secret*",
    "*token*",
    "*api_key*",
    "*apikey*",
    "*access_key*",
    "*private_key*",
    "*account_key*",
    "*credential*",
    "*authorization*",
    "*cookie*",
    "bearer",
    "sig",
    "mysql* -p",
    "mariadb* -p",
    "sshpass -p",
    "redis-cli -a",
    "curl -u",
    "curl -U",
    "curl --user",
    "curl --proxy-user",
    "openssl -pass",
    "openssl -passin",
    "openssl -passout",
    "ldap* -w",
    "mongo* -p",
    "sqlcmd -p",
    "smbclient -u",
];

/// Cuts secrets.
#[derive(Clone, Debug)]
pub struct Sieve {
    names: Vec<String>,
    options: Vec<(String, String)>,
}

impl Sieve {
    /// A sieve of these patterns.
    pub fn new<P: AsRef<str>>(patterns: &[P]) -> Self {
        let (mut names, mut options) = (Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern.as_ref().split_once(' ') {
                Some((program, option)) => options.push((fold(program), option.trim().to_owned())),
                None => names.push(fold(pattern.as_ref())),
            }
        }
        Self { names, options }
    }

    /// A command line (`/proc/PID/cmdline`: arguments with a NUL after each) as one line without secrets.
    pub fn line(&self, cmdline: &[u8]) -> String {
        let cmdline = &cmdline[..cmdline.len().min(MAX_READ_BYTES)];
        let cmdline = cmdline.strip_suffix(&[0]).unwrap_or(cmdline);
        let mut words = cmdline.split(|byte| *byte == 0);
        let program = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let options = self.options_of(&program);
        let mut line = self.argument(&program);
        let mut cut_next = false;
        for word in words {
            let word = String::from_utf8_lossy(word);
            line.push(' ');
            if std::mem::take(&mut cut_next) {
                line.push_str(CUT);
            } else if let Some(end) = options.iter().find_map(|option| ends(&word, option)) {
                line.push_str(&word[..end]);
                if word.len() == end {
                    cut_next = true;
                } else {
                    line.push_str(CUT);
                }
            } else {
                line.push_str(&self.argument(&word));
                cut_next = self.is_flag(&word);
            }
            if line.len() > MAX_ARGS_BYTES {
                break;
            }
        }
        shorten(line.replace(char::is_control, " "))
    }

    /// Short options of a program whose value is a secret.
    fn options_of(&self, program: &str) -> Vec<&str> {
        let base = fold(program.rsplit('/').next().unwrap_or(program));
        self.options
            .iter()
            .filter(|(pattern, _)| fits(pattern.as_bytes(), base.as_bytes()))
            .map(|(_, option)| option.as_str())
            .collect()
    }

    /// Whether an argument is a flag whose value is the next one.
    fn is_flag(&self, word: &str) -> bool {
        word.starts_with('-') && !word.contains(['=', ' ', ':']) && self.named(word)
    }

    /// One argument. It may be a whole script (`sh -c '…'`), a query or a header: everything in it that looks like a name
    /// with a value is looked at.
    fn argument(&self, word: &str) -> String {
        let mut out = String::with_capacity(word.len());
        let mut rest = word;
        while let Some(at) = rest.find(['=', ':', ' ']) {
            let (before, after) = rest.split_at(at);
            let separator = after.as_bytes()[0];
            let after = &after[1..];
            let name = before
                .trim_end_matches(['"', '\''])
                .rsplit(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '.')))
                .next()
                .unwrap_or_default();
            out.push_str(before);
            out.push(separator as char);
            rest = after;
            if separator == b':' && after.starts_with("//") {
                let (kept, remaining) = authority(&after[2..]);
                out.push_str("//");
                out.push_str(&kept);
                rest = remaining;
                continue;
            }
            // In a script a flag and its value are divided by a space; other words are not names there.
            let is_name = separator != b' ' || name.starts_with('-') || fold(name) == "bearer";
            if name.is_empty() || !is_name || !self.named(name) {
                continue;
            }
            let (value, remaining) = value(after, separator);
            if !value.is_empty() {
                out.push_str(CUT);
            }
            rest = remaining;
        }
        out.push_str(rest);
        out
    }

    fn named(&self, name: &str) -> bool {
        let name = fold(name.trim_start_matches('-'));
        self.names
            .iter()
            .any(|pattern| fits(pattern.as_bytes(), name.as_bytes()))
    }
}

impl Default for Sieve {
    fn default() -> Self {
        Self::new(DEFAULT_PATTERNS)
    }
}

/// Where an option ends in an argument, if it is that option: its value is behind that, or the next argument. A short one may stand
/// behind others without a value (`-su`); what else then has that letter in it, such as a file's name, is cut too.
fn ends(word: &str, option: &str) -> Option<usize> {
    let letter = option.strip_prefix('-').filter(|name| name.len() == 1);
    match letter {
        Some(letter) => {
            let cluster = word
                .strip_prefix('-')
                .filter(|rest| !rest.starts_with('-'))?;
            let before = cluster.find(letter)?;
            let flags = cluster[..before]
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic());
            flags.then_some(1 + before + letter.len())
        }
        None if word == option => Some(word.len()),
        None => word
            .strip_prefix(option)
            .is_some_and(|rest| rest.starts_with('='))
            .then_some(option.len() + 1),
    }
}

/// The value at the start of a text, and what follows it. A quoted one ends at its quote, a header's with the line or
/// quote, any other where a word or a parameter ends.
fn value(text: &str, separator: u8) -> (&str, &str) {
    let text_start = text;
    let text = text.trim_start_matches(' ');
    let quoted = text
        .chars()
        .next()
        .filter(|first| matches!(first, '"' | '\''));
    let end = match quoted {
        Some(quote) => text[1..].find(quote).map(|at| at + 2),
        None if separator == b':' => text.find(['"', '\'', '\n', ',', '}']),
        None => text.find([' ', '&', ';', '"', '\'', '\n', ',', '\t', '|', ')', '}']),
    };
    let skipped = text_start.len() - text.len();
    text_start.split_at(skipped + end.unwrap_or(text.len()))
}

/// The part of a URL behind `//`, up to where user and host end; without the password.
fn authority(text: &str) -> (String, &str) {
    let end = text
        .find(['/', ' ', '?', '#', '"', '\'', '\n', ','])
        .unwrap_or(text.len());
    // A password may hold any of these unescaped; what counts is the last `@` of the word.
    let word_end = text.find([' ', '"', '\'', '\n']).unwrap_or(text.len());
    let end = match text[..word_end].rfind('@') {
        Some(at) if at > end && text[..end].contains(':') => at,
        _ => end,
    };
    let (authority, rest) = text.split_at(end.min(text.len()));
    let (authority, rest) = match rest.strip_prefix('@') {
        Some(after) => (format!("{authority}@"), after),
        None => (authority.to_owned(), rest),
    };
    let kept = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:{CUT}@{host}"),
            // A user alone may be a token.
            None if user.len() >= 20 => format!("{CUT}@{host}"),
            None => authority,
        },
        None => authority,
    };
    (kept, rest)
}

/// Lower case, `-` as `_`.
fn fold(text: &str) -> String {
    text.to_lowercase().replace('-', "_")
}

/// Whether a name fits a pattern with `*` for anything.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(byte) if *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    p = after_star;
                    n = from + 1;
                    retry = Some((after_star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn shorten(mut line: String) -> String {
    if line.len() > MAX_ARGS_BYTES {
        let end = (0..=MAX_ARGS_BYTES - '…'.len_utf8())
            .rev()
            .find(|at| line.is_char_boundary(*at))
            .unwrap_or_default();
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(words: &[&str]) -> String {
        let mut bytes = Vec::new();
        for word in words {
            bytes.extend_from_slice(word.as_bytes());
            bytes.push(0);
        }
        Sieve::default().line(&bytes)
    }

    #[test]
    fn secrets_are_cut_and_the_rest_is_not() {
        for (words, expected) in [
            (&["nginx", "-g", "daemon off;"][..], "nginx -g daemon off;"),
            (
                &["app", "--password=hunter2", "-v"],
                "app --password=*** -v",
            ),
            (
                &["app", "--db-password", "hunter2", "x"],
                "app --db-password *** x",
            ),
            (&["app", "--passwordfile=/run/x"], "app --passwordfile=***"),
            (
                &["env", "GITHUB_TOKEN=ghp_abc", "HOME=/root"],
                "env GITHUB_TOKEN=*** HOME=/root",
            ),
            (
                &["env", "AWS_SECRET_ACCESS_KEY=a/b+c=="],
                "env AWS_SECRET_ACCESS_KEY=***",
            ),
            (
                &[
                    "psql",
                    "postgres://app:s3cr:et@db:5432/shop?sslmode=require",
                ],
                "psql postgres://app:***@db:5432/shop?sslmode=require",
            ),
            (
                &["psql", "postgres://app:p/w?d@db/shop"],
                "psql postgres://app:***@db/shop",
            ),
            (
                &["curl", "https://example.org/a@b:c"],
                "curl https://example.org/a@b:c",
            ),
            (
                &[
                    "git",
                    "clone",
                    "https://ghp_0123456789012345678901@github.com/x",
                ],
                "git clone https://***@github.com/x",
            ),
            (&["ssh", "git@github.com"], "ssh git@github.com"),
            (
                &["curl", "-u", "me:pw", "http://h/"],
                "curl -u *** http://h/",
            ),
            (&["/usr/bin/curl", "-ume:pw"], "/usr/bin/curl -u***"),
            (
                &["curl", "--user", "me:pw", "-sSu", "me:pw", "-suyou:pw", "h"],
                "curl --user *** -sSu *** -su*** h",
            ),
            (
                &["curl", "-o", "out", "--user-agent", "x", "--proxy-user=a:b"],
                "curl -o out --user-agent x --proxy-user=***",
            ),
            (
                &["openssl", "rsa", "-passin", "pass:x", "-in", "key.pem"],
                "openssl rsa -passin *** -in key.pem",
            ),
            (&["mysql", "-phunter2", "-h", "db"], "mysql -p*** -h db"),
            (&["python3", "-pfoo"], "python3 -pfoo"),
            (
                &["curl", "-H", "Authorization: Bearer abc.def", "x"],
                "curl -H Authorization:*** x",
            ),
            (
                &[
                    "sh",
                    "-c",
                    "curl -H 'Authorization: Bearer abc' http://h; API_KEY=1 run --token t9 -x",
                ],
                "sh -c curl -H 'Authorization:***' http://h; API_KEY=*** run --token *** -x",
            ),
            (
                &["sh", "-c", "X_PASSWORD=\"a b c\" run"],
                "sh -c X_PASSWORD=*** run",
            ),
            (
                &["app", "http://h/?a=1&access_token=zzz&b=2"],
                "app http://h/?a=1&access_token=***&b=2",
            ),
            (
                &["app", "{\"password\": \"x y\", \"n\": 1}"],
                "app {\"password\":***, \"n\": 1}",
            ),
            (
                &[
                    "java",
                    "-Djavax.net.ssl.keyStorePassword=changeit",
                    "-jar",
                    "a.jar",
                ],
                "java -Djavax.net.ssl.keyStorePassword=*** -jar a.jar",
            ),
            (&["a\nb", "c\x1b[31m"], "a b c [31m"),
            (&["app", ""], "app "),
        ] {
            assert_eq!(line(words), expected);
        }
    }

    #[test]
    fn a_list_of_ones_own() {
        let sieve = Sieve::new(&["pin", "frob* -k"]);
        assert_eq!(
            sieve.line(b"frobnicate\0--pin\x001234\0-k9\0--password=x\0"),
            "frobnicate --pin *** -k*** --password=x"
        );
    }

    #[test]
    fn long_lines_are_shortened_between_characters() {
        let text = line(&["app", &"ü".repeat(2_000)]);
        assert!(
            text.len() <= MAX_ARGS_BYTES && text.ends_with("ü…"),
            "{}",
            text.len()
        );
    }

    #[test]
    fn stars() {
        for (pattern, name, expected) in [
            ("*token*", "my_token_id", true),
            ("*_pwd", "db_pwd", true),
            ("*_pwd", "db_pwds", false),
            ("a*b*c", "a__b__bc", true),
            ("a*b*c", "a__b__cb", false),
            ("", "", true),
            ("*", "", true),
            ("x", "", false),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn anything_is_a_command_line(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Sieve::default().line(&bytes).len() <= MAX_ARGS_BYTES);
        }

        /// Whatever stands around it, the value of a named option does not come through.
        #[test]
        fn a_named_value_never_passes(
            before in "[a-z =:/@'\"-]{0,20}", secret in "S3[0-9]{8}", after in "[a-z =:/@-]{0,20}", form in 0_u8..4
        ) {
            let words = match form {
                0 => vec![before, format!("--password={secret}"), after],
                1 => vec![before, "--auth-token".into(), secret.clone(), after],
                2 => vec![before, format!("X_SECRET={secret}"), after],
                _ => vec![before, format!("redis://u:{secret}@h/0"), after],
            };
            let mut bytes = b"app\0".to_vec();
            for word in &words {
                bytes.extend_from_slice(word.as_bytes());
                bytes.push(0);
            }
            let line = Sieve::default().line(&bytes);
            prop_assert!(!line.contains(&secret), "{line}");
        }
    }
}
