// Numbers of the listening tests, without a page: a seeded generator, the binomial tail, CSV.
"use strict";

// One object holds everything: scripts of a page at file:// cannot be modules.
const listeningPage = {};

// A generator of numbers in [0, 1) from a whole seed (a Weyl sequence through a 32-bit mixer).
listeningPage.generator = (seed) => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) / 4294967296;
  };
};

listeningPage.shuffled = (items, random) => {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
};

// The probability of at least `right` right answers out of `count` by guessing.
listeningPage.guessing = (right, count) => {
  let sum = 0;
  let term = Math.pow(0.5, count); // C(count, k) / 2^count for k = 0
  for (let k = 0; k <= count; k++) {
    if (k >= right) sum += term;
    term *= (count - k) / (k + 1);
  }
  return Math.min(1, sum);
};

// Rows of values as CSV. What a spreadsheet would take for a formula is made a text.
listeningPage.csv = (rows) => {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
};
