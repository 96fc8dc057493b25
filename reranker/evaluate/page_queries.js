// The table of queries in report.html: which of them it shows, in which order, and what stands in it. Pure functions of
// `data`, which `page.py` has written, and `choice`, what the reader has chosen, without a document: page.js has that.
//
// choice: { words: what is searched for, set: 0 for all or the number of one, metric, first, second: numbers of a metric
// and of the systems that are compared, sort: a column's id, down: whether from its largest value }
"use strict";
const NONE = "–";
const setsOf = (data) => [...new Set(data.queries.map((one) => one.set))];
const valueOf = (one, system, metric) => one.values[system] === null ? null : one.values[system][metric];
const differenceOf = (one, choice) => {
  const a = valueOf(one, choice.first, choice.metric), b = valueOf(one, choice.second, choice.metric);
  return a === null || b === null ? null : a - b;
};
// [id, heading, what a query is sorted by]
const columnsOf = (data, choice) => [
  ["query", "query", (one) => one.query],
  ...data.systems.map((name, number) => ["rank" + number, name, (one) => one.ranks[number]]),
  ["difference", "difference", (one) => differenceOf(one, choice)],
];
// What a click on a column's heading chooses: the other direction, or another column from its usual end.
const sortedBy = (choice, id) => ({ ...choice, sort: id, down: choice.sort === id ? !choice.down : id === "difference" });
// The queries that hold all words, in order; those without a value last, whatever the direction, equal ones as they were.
const chosenOf = (data, choice) => {
  const words = choice.words.toLowerCase().split(/\s+/).filter(Boolean), sets = setsOf(data);
  const found = data.queries.filter((one) => (choice.set === 0 || one.set === sets[choice.set - 1]) && words.every((word) => one.query.toLowerCase().includes(word)));
  const key = columnsOf(data, choice).find(([id]) => id === choice.sort)[2];
  return found.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === y) return 0;
    if (x === null) return 1;
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (choice.down ? -1 : 1);
  });
};
const tallyOf = (queries, choice) => {
  const differ = queries.map((one) => differenceOf(one, choice)).filter((by) => by !== null);
  const won = differ.filter((by) => by > 0).length, lost = differ.filter((by) => by < 0).length;
  return { queries: queries.length, won, lost, tied: differ.length - won - lost };
};
const toldOf = (tally) => `${tally.queries.toLocaleString("en")} queries: ${tally.won} won, ${tally.lost} lost, ${tally.tied} tied`;
// The cells of a query: [text, class].
const cellsOf = (one, choice) => {
  const by = differenceOf(one, choice);
  return [
    [one.query, "text"],
    ...one.ranks.map((rank, number) => [one.values[number] === null ? "" : rank === null ? NONE : String(rank), "number"]),
    [by === null ? "" : (by > 0 ? "+" : "") + by.toFixed(3), "number " + (by > 0 ? "better" : by < 0 ? "worse" : "")],
  ];
};
// What an opened query shows: lists of passages, one for each system that ranked it and one of those that none had before
// it; null where they are not in the page. rank and score may be null.
const listsOf = (data, one) => {
  if (!one.opened) return null;
  const { candidates, judged, order, at, scores } = one.opened;
  const passage = (name, rank, score) => ({ text: data.texts[JSON.stringify([one.set, name])] || name, right: (judged[name] || 0) > 0, rank, score });
  const lists = data.systems.flatMap((heading, number) => order[number] === null ? [] : [{
    heading,
    passages: order[number].map((place, index) => passage(candidates[place], at[number][index], scores[number] === null ? null : scores[number][place])),
  }]);
  const missed = Object.keys(judged).filter((name) => judged[name] > 0 && !candidates.includes(name));
  if (missed.length) lists.push({ heading: "right, and not among the candidates", passages: missed.map((name) => passage(name, null, null)) });
  return lists;
};
