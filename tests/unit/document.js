// As much of a document as page.js asks for: elements with children, texts, attributes and listeners. No layout, no style,
// no parser: the elements that page.js finds by id are made by `documentOf`.
class Element {
  constructor(tag) { Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, own: "", className: "", hidden: false, parentElement: null }); }
  set textContent(text) { this.own = String(text); this.children = []; }
  get textContent() { return this.own + this.children.map((one) => typeof one === "string" ? one : one.textContent).join(""); }
  append(...more) { more.forEach((one) => { if (one instanceof Element) one.parentElement = this; this.children.push(one); }); }
  replaceChildren(...more) { this.children = []; this.append(...more); }
  after(one) { one.parentElement = this.parentElement; this.parentElement.children.splice(this.parentElement.children.indexOf(this) + 1, 0, one); }
  remove() { this.parentElement.children.splice(this.parentElement.children.indexOf(this), 1); }
  get nextSibling() { return this.parentElement.children[this.parentElement.children.indexOf(this) + 1] || null; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(kind, listener) { (this.listeners[kind] = this.listeners[kind] || []).push(listener); }
  happens(kind, more) { (this.listeners[kind] || []).forEach((listener) => listener({ target: this, ...more })); }
  all(tag, name) { return this.children.flatMap((one) => one instanceof Element ? [...(one.tag === tag && (name === undefined || one.className === name) ? [one] : []), ...one.all(tag, name)] : []); }
}
const documentOf = (written) => {
  const named = {};
  for (const [id, tag] of [["data", "script"], ["words", "input"], ["metric", "select"], ["set", "select"], ["first", "select"], ["second", "select"], ["told", "span"], ["queries", "table"], ["more", "button"]]) {
    named[id] = new Element(tag);
    new Element("label").append(named[id]);
  }
  named.data.textContent = written;
  named.words.value = "";
  const head = new Element("thead"), body = new Element("tbody");
  head.append(new Element("tr"));
  named.queries.append(head, body);
  Object.assign(named.queries, { tHead: { rows: head.children }, tBodies: [body] });
  return { getElementById: (id) => named[id], createElement: (tag) => new Element(tag) };
};
