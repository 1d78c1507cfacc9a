//! What pgmq itself can do here, without us: the ceiling.

/// (name, SQL for pgbench); each moves 100 messages.
pub(crate) const SCRIPTS: [(&str, &str); 3] = [
    ("send_batch", "SELECT pgmq.send_batch('raw', (SELECT bodies FROM raw_bodies));"),
    (
        "read + delete",
        "SELECT pgmq.delete('raw', ARRAY(SELECT msg_id FROM pgmq.read('raw', 60, 100)));",
    ),
    (
        "send_batch + read + delete",
        "SELECT pgmq.send_batch('cycle', (SELECT bodies FROM raw_bodies));\n\
         SELECT pgmq.delete('cycle', ARRAY(SELECT msg_id FROM pgmq.read('cycle', 60, 100)));",
    ),
];

/// Messages of the size of ours, made beforehand so that making them costs nothing.
pub(crate) const SET_UP: &str = "
    SELECT pgmq.create('raw'), pgmq.create('cycle');
    CREATE TABLE raw_bodies AS
    SELECT array_agg(jsonb_build_object('task', gen_random_uuid(), 'step', 0, 'attempt', 1)) AS bodies FROM generate_series(1, 100);
";

/// How many messages one call of a script moves.
pub(crate) const BATCH: f64 = 100.0;
