"""The notebook's loop as a TensorFlow 1 graph; run by ``notebook_loop`` in a Python that has TensorFlow.

Prints one JSON document. Imports nothing of this project, which may be absent there.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import tensorflow as tensorflow2

tf = tensorflow2.compat.v1


def graph(cells: int, genes: int, tower: list[int], size: int) -> tuple:
    """Build the network, its loss and one Adam step."""
    cell = tf.placeholder(tf.int32, [None])
    gene = tf.placeholder(tf.int32, [None])
    count = tf.placeholder(tf.float32, [None])
    training = tf.placeholder(tf.bool, [])
    looked_up = [
        tf.nn.embedding_lookup(tf.Variable(tf.random.uniform([n, size])), ids)
        for n, ids in ((cells, cell), (genes, gene), (cells, cell), (genes, gene))
    ]
    hidden = tf.concat(looked_up[2:], axis=1)
    for units in tower:
        hidden = tf.keras.layers.Dense(units, activation="relu")(hidden)
        hidden = tf.keras.layers.BatchNormalization()(hidden, training=training)
        hidden = tf.nn.dropout(hidden, rate=tf.where(training, 0.2, 0.0))
    both = tf.concat([looked_up[0] * looked_up[1], hidden], axis=1)
    out = tf.keras.layers.Dense(1)(both)[:, 0]
    loss = tf.reduce_mean(tf.square(out - count))
    return cell, gene, count, training, tf.train.AdamOptimizer(1e-3).minimize(loss), loss


def main() -> None:
    """Train for the given seconds and print the rate."""
    wanted = json.loads(sys.argv[1])
    tf.disable_eager_execution()
    cell, gene, count, training, step, loss = graph(
        wanted["cells"], wanted["genes"], wanted["tower"], wanted["size"]
    )
    batch = wanted["batch"]
    rng = np.random.default_rng(0)
    fed = [
        {
            cell: rng.integers(wanted["cells"], size=batch),
            gene: rng.integers(wanted["genes"], size=batch),
            count: (rng.random(batch) < 0.05).astype(np.float32),
            training: True,
        }
        for _ in range(64)
    ]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for i in range(10):
            session.run([step, loss], feed_dict=fed[i])
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < wanted["seconds"]:
            session.run([step, loss], feed_dict=fed[steps % 64])
            steps += 1
        rate = steps * batch / (time.perf_counter() - begin)
    print(json.dumps({"pairs_per_second": rate, "version": tensorflow2.__version__}))


if __name__ == "__main__":
    main()
