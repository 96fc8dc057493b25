// The document of report.html: what the reader chooses goes to page_queries.js, and what that says is drawn.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const made = (tag, text, name) => { const one = document.createElement(tag); if (text !== undefined) one.textContent = text; if (name) one.className = name; return one; };
const state = { sort: "difference", down: true, shown: 50 };
const fill = (select, names, chosen) => { names.forEach((name, number) => { const one = made("option", name); one.value = number; select.append(one); }); select.value = Math.max(0, chosen); };
const at = (name) => data.systems.indexOf(name);
fill(byId("metric"), data.titles, data.metrics.indexOf("mrr"));
fill(byId("set"), ["all", ...setsOf(data)], 0);
if (setsOf(data).length < 2) byId("set").parentElement.hidden = true;
fill(byId("first"), data.systems, at("fine-tuned"));
fill(byId("second"), data.systems, at("base") >= 0 ? at("base") : 0);
const chosenNow = () => {
  const [set, metric, first, second] = ["set", "metric", "first", "second"].map((id) => Number(byId(id).value));
  return { words: byId("words").value, set, metric, first, second, sort: state.sort, down: state.down };
};
const drawnLists = (one) => {
  const drawn = made("div", undefined, "lists"), lists = listsOf(data, one);
  if (lists === null) { drawn.append(made("p", "Its passages are in queries.jsonl and passages.jsonl.")); return drawn; }
  lists.forEach(({ heading, passages }) => {
    const part = made("div"), list = made("ol");
    part.append(made("h4", heading));
    passages.forEach(({ text, right, rank, score }) => {
      const item = made("li", text, right ? "right" : "");
      if (rank !== null) item.value = rank;
      if (score !== null) item.append(" ", made("small", score.toFixed(3)));
      list.append(item);
    });
    part.append(list);
    drawn.append(part);
  });
  return drawn;
};
const toggle = (row, one) => {
  if (row.nextSibling && row.nextSibling.className === "opened") { row.nextSibling.remove(); row.setAttribute("aria-expanded", "false"); return; }
  const under = made("tr", undefined, "opened"), cell = made("td");
  cell.colSpan = columnsOf(data, chosenNow()).length;
  cell.append(drawnLists(one));
  under.append(cell);
  row.after(under);
  row.setAttribute("aria-expanded", "true");
};
const draw = () => {
  const head = byId("queries").tHead.rows[0], body = byId("queries").tBodies[0], choice = chosenNow();
  head.replaceChildren(...columnsOf(data, choice).map(([id, name]) => {
    const cell = made("th"), button = made("button", name + (choice.sort === id ? (choice.down ? " ↓" : " ↑") : ""));
    cell.setAttribute("aria-sort", choice.sort === id ? (choice.down ? "descending" : "ascending") : "none");
    button.addEventListener("click", () => { const { sort, down } = sortedBy(choice, id); Object.assign(state, { sort, down }); draw(); });
    cell.append(button);
    return cell;
  }));
  const found = chosenOf(data, choice);
  body.replaceChildren(...found.slice(0, state.shown).map((one) => {
    const row = made("tr", undefined, "query");
    row.tabIndex = 0;
    row.append(...cellsOf(one, choice).map(([text, name]) => made("td", text, name)));
    row.addEventListener("click", () => toggle(row, one));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target === row) toggle(row, one); });
    return row;
  }));
  byId("told").textContent = toldOf(tallyOf(found, choice));
  byId("more").hidden = found.length <= state.shown;
};
["words", "metric", "set", "first", "second"].forEach((id) => byId(id).addEventListener("input", () => { state.shown = 50; draw(); }));
byId("more").addEventListener("click", () => { state.shown += 200; draw(); });
draw();
