//! Tokens to an expression, by recursive descent.

use super::field::{Field, Kind};
use super::lexer::{Lexeme, Token, lex};
use super::value::{Value, read};
use super::{Expr, FilterError, MAX_DEPTH, MAX_TESTS, Op};

/// Reads an expression.
pub fn parse(text: &str) -> Result<Expr, FilterError> {
    let tokens = lex(text)?;
    let end = text.chars().count();
    let mut parser = Parser {
        tokens: &tokens,
        next: 0,
        end,
        tests: 0,
    };
    if tokens.is_empty() {
        return Err(FilterError::new(
            0,
            "the filter is empty",
            "server.port = 443",
        ));
    }
    let expr = parser.any(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => {
            let what = format!("{} is one too many", shown(&token.what));
            Err(FilterError::new(token.at, what, "join tests with and, or"))
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    next: usize,
    end: usize,
    tests: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self, depth: usize) -> Result<Expr, FilterError> {
        let first = self.all(depth)?;
        if !self.keyword("or") {
            return Ok(first);
        }
        let mut parts = vec![first, self.all(depth)?];
        while self.keyword("or") {
            parts.push(self.all(depth)?);
        }
        Ok(Expr::Any(parts))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, FilterError> {
        let first = self.one(depth)?;
        if !self.keyword("and") {
            return Ok(first);
        }
        let mut parts = vec![first, self.one(depth)?];
        while self.keyword("and") {
            parts.push(self.one(depth)?);
        }
        Ok(Expr::All(parts))
    }

    fn one(&mut self, depth: usize) -> Result<Expr, FilterError> {
        if depth > MAX_DEPTH {
            return Err(FilterError::new(
                self.at(),
                format!("nested deeper than {MAX_DEPTH}"),
                "write it flatter",
            ));
        }
        if self.keyword("not") {
            return Ok(Expr::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.symbol("(") {
            let inner = self.any(depth + 1)?;
            if !self.symbol(")") {
                return Err(FilterError::new(
                    self.at(),
                    "a parenthesis is not closed",
                    "add )",
                ));
            }
            return Ok(inner);
        }
        self.test()
    }

    fn test(&mut self) -> Result<Expr, FilterError> {
        let field = self.field()?;
        let at = self.at();
        if self.keyword("is") {
            let not = self.keyword("not");
            if !self.keyword("null") {
                return Err(FilterError::new(
                    self.at(),
                    "only null can follow is",
                    "is null, is not null",
                ));
            }
            self.count(at)?;
            return Ok(negated(not, Expr::Null { field }));
        }
        if field.kind() == Kind::End {
            let hint = format!(
                "{field} is null, {field} is not null, or a field such as {field}.workload"
            );
            return Err(FilterError::new(
                at,
                format!("{field} is a whole end"),
                hint,
            ));
        }
        let not = self.keyword("not");
        if self.keyword("in") {
            let values = self.values(field)?;
            return Ok(negated(not, Expr::In { field, values }));
        }
        if not {
            return Err(FilterError::new(
                self.at(),
                "only in can follow not here",
                "not in (…)",
            ));
        }
        let Some(Token {
            what: Lexeme::Symbol(symbol),
            ..
        }) = self.peek()
        else {
            let what = format!("{field} is compared with nothing");
            return Err(FilterError::new(
                at,
                what,
                "one of = != < <= > >= ~ !~ in is",
            ));
        };
        self.next += 1;
        self.comparison(field, symbol, at)
    }

    fn comparison(&mut self, field: Field, symbol: &str, at: usize) -> Result<Expr, FilterError> {
        let op = match symbol {
            "=" | "==" | "!=" | "<>" => Op::Eq,
            "~" | "!~" => {
                let (_, pattern) = self.word()?;
                self.count(at)?;
                if field.kind() != Kind::Text {
                    let what = format!("{field} is not text, so ~ cannot be used on it");
                    return Err(FilterError::new(at, what, format!("{field} = …")));
                }
                return Ok(negated(symbol == "!~", Expr::Like { field, pattern }));
            }
            "<" => Op::Lt,
            "<=" => Op::Le,
            ">" => Op::Gt,
            ">=" => Op::Ge,
            other => {
                return Err(FilterError::new(
                    at,
                    format!("{other} does not compare"),
                    "one of = != < <= > >= ~ !~",
                ));
            }
        };
        let ordered = matches!(
            field.kind(),
            Kind::Number | Kind::Size | Kind::Duration | Kind::Time
        );
        if op != Op::Eq && !ordered {
            let what = format!("{field} has no order, so {symbol} cannot be used on it");
            return Err(FilterError::new(at, what, "one of = != in"));
        }
        let value = self.value(field)?;
        let expr = match value {
            Value::Network(_) => Expr::In {
                field,
                values: vec![value],
            },
            _ => Expr::Compare { field, op, value },
        };
        Ok(negated(matches!(symbol, "!=" | "<>"), expr))
    }

    fn field(&mut self) -> Result<Field, FilterError> {
        let at = self.at();
        let Some(Token {
            what: Lexeme::Word(word),
            ..
        }) = self.peek()
        else {
            let what = match self.peek() {
                Some(token) => format!("{} stands where a field should", shown(&token.what)),
                None => "a test is missing at the end".to_owned(),
            };
            return Err(FilterError::new(at, what, "server.port = 443"));
        };
        self.next += 1;
        Field::named(&word.to_ascii_lowercase()).ok_or_else(|| {
            let hint = match Field::nearest(&word.to_ascii_lowercase()) {
                Some(name) => format!("did you mean {name}?"),
                None => "weft help filter lists the fields".to_owned(),
            };
            FilterError::new(at, format!("there is no field {word}"), hint)
        })
    }

    fn values(&mut self, field: Field) -> Result<Vec<Value>, FilterError> {
        if !self.symbol("(") {
            return Ok(vec![self.value(field)?]);
        }
        let mut values = vec![self.value(field)?];
        while self.symbol(",") {
            values.push(self.value(field)?);
        }
        if self.symbol(")") {
            return Ok(values);
        }
        Err(FilterError::new(
            self.at(),
            "a list is not closed",
            "(one, two, three)",
        ))
    }

    fn value(&mut self, field: Field) -> Result<Value, FilterError> {
        let (at, text) = self.word()?;
        self.count(at)?;
        read(field.kind(), &text).map_err(|hint| {
            FilterError::new(at, format!("{text:?} is not a value of {field}"), hint)
        })
    }

    /// A value's text, quoted or bare.
    fn word(&mut self) -> Result<(usize, String), FilterError> {
        let at = self.at();
        let found = match self.peek().map(|token| &token.what) {
            Some(Lexeme::Quoted(text)) => Ok(text.clone()),
            Some(Lexeme::Word(word)) if is_keyword(word) => Err(FilterError::new(
                at,
                format!("the word {word} stands where a value should"),
                format!("\"{word}\""),
            )),
            Some(Lexeme::Word(word)) => Ok(word.clone()),
            Some(Lexeme::Symbol(symbol)) => {
                let what = format!("{symbol} stands where a value should");
                Err(FilterError::new(at, what, "put the value in \"quotes\""))
            }
            None => Err(FilterError::new(
                at,
                "a value is missing at the end",
                "server.port = 443",
            )),
        }?;
        self.next += 1;
        Ok((at, found))
    }

    fn count(&mut self, at: usize) -> Result<(), FilterError> {
        self.tests += 1;
        if self.tests <= MAX_TESTS {
            return Ok(());
        }
        let what = format!("more than {MAX_TESTS} values to test against");
        Err(FilterError::new(
            at,
            what,
            "use a pattern (~) or a network, or weft sql",
        ))
    }

    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.next)
    }

    fn at(&self) -> usize {
        self.peek().map_or(self.end, |token| token.at)
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token { what: Lexeme::Word(w), .. }) if w.eq_ignore_ascii_case(keyword));
        self.next += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found =
            matches!(self.peek(), Some(Token { what: Lexeme::Symbol(s), .. }) if *s == symbol);
        self.next += usize::from(found);
        found
    }
}

fn is_keyword(word: &str) -> bool {
    ["and", "or", "not", "in", "is", "null"]
        .iter()
        .any(|keyword| word.eq_ignore_ascii_case(keyword))
}

fn negated(not: bool, expr: Expr) -> Expr {
    if not { Expr::Not(Box::new(expr)) } else { expr }
}

fn shown(lexeme: &Lexeme) -> String {
    match lexeme {
        Lexeme::Word(text) => text.clone(),
        Lexeme::Quoted(text) => format!("{text:?}"),
        Lexeme::Symbol(symbol) => (*symbol).to_owned(),
    }
}
