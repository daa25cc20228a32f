//! A small blocking SQL connection for test threads.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::pg::Endpoint;
use super::process::HUNG_AFTER;

/// One connection. It has a runtime of its own, so that each test thread is independent of all others.
pub struct Sql {
    runtime: Runtime,
    client: Client,
}

/// Why a statement brought nothing.
#[derive(Debug)]
pub struct SqlError {
    /// The five-character SQLSTATE, when the server itself answered with an error.
    pub state: Option<String>,
    /// For messages.
    pub text: String,
}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.state {
            Some(state) => write!(f, "{} ({state})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => SqlError {
                state: Some(db.code().code().to_owned()),
                text: format!("{}: {}", db.severity(), db.message()),
            },
            None => SqlError { state: None, text: error.to_string() },
        }
    }
}

impl Sql {
    /// Connects.
    pub fn connect(at: &Endpoint, dbname: &str) -> Result<Sql, SqlError> {
        let runtime = Builder::new_current_thread().enable_all().build().expect("make a runtime");
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&at.host)
            .port(at.port)
            .user(&at.user)
            .dbname(dbname)
            .connect_timeout(Duration::from_secs(30));
        if let Some(password) = &at.password {
            config.password(password);
        }
        let (client, connection) = within(&runtime, config.connect(NoTls))?;
        // Driven whenever this connection waits for an answer; its error also ends the statement that waits.
        runtime.spawn(async move {
            let _ = connection.await;
        });
        Ok(Sql { runtime, client })
    }

    /// Runs statements for their effect, sent as one message.
    pub fn run(&self, statements: &str) -> Result<(), SqlError> {
        within(&self.runtime, self.client.batch_execute(statements))
    }

    /// Rows as text; NULL is an empty string.
    pub fn rows(&self, query: &str) -> Result<Vec<Vec<String>>, SqlError> {
        let messages = within(&self.runtime, self.client.simple_query(query))?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|i| row.get(i).unwrap_or("").to_owned()).collect());
            }
        }
        Ok(rows)
    }

    /// The only value of the only row.
    pub fn value(&self, query: &str) -> Result<String, SqlError> {
        let rows = self.rows(query)?;
        match rows.first().and_then(|row| row.first()) {
            Some(value) => Ok(value.clone()),
            None => Err(SqlError { state: None, text: format!("no row from: {query}") }),
        }
    }

    /// The only value of the only row, as a number.
    pub fn number(&self, query: &str) -> Result<u64, SqlError> {
        let text = self.value(query)?;
        text.parse()
            .map_err(|_| SqlError { state: None, text: format!("{text:?} is no number, from: {query}") })
    }
}

/// Runs to the end, or to an error when the server has stopped answering.
fn within<T>(
    runtime: &Runtime,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    match runtime.block_on(async { tokio::time::timeout(HUNG_AFTER, work).await }) {
        Ok(result) => Ok(result?),
        Err(_) => Err(SqlError { state: None, text: "no answer from the server".to_owned() }),
    }
}
