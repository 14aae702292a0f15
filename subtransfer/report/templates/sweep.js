// Redraws the figure of a sweep's page for two chosen axes. Plain JavaScript by hand: plotting
// libraries that run in a page without fetching anything weigh more than all the page's data.
// Everything but `draw` is the page's own wiring; `draw(data, choice)` returns SVG as text.
const COLOURS = ["#2a6f97", "#c25e00", "#4f9d69", "#b3261e", "#7b2d8b", "#8a6d00", "#5b6570", "#00838f", "#9f86c0"];
const NOTHING = "none";
function text(s) { return String(s).replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c]); }
function short(v) {
  if (typeof v !== "number") return v === null ? NOTHING : String(v);
  const digits = x => String(Number(x.toPrecision(3))), size = Math.abs(v);
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (size >= 0.9995 * unit) return digits(v / unit) + letter;
  return digits(v);
}
function values(rows, axis) {
  return [...new Set(rows.map(r => r.at[axis]))].sort((a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a) < String(b) ? -1 : 1);
}
function chosen(data, choice) {
  return data.rows.filter(r => (choice.role === "" || r.role === choice.role) && r[choice.metric] &&
    data.design.every(axis => axis === choice.x || axis === choice.series || !(axis in choice.filters)
      || short(r.at[axis]) === choice.filters[axis]));
}
function grouped(rows, choice) {  // lines by the chosen axis, and by arm where that leaves two at one place
  const by = name => {
    const lines = new Map();
    for (const r of rows) lines.set(name(r), [...(lines.get(name(r)) || []), r]);
    return lines;
  };
  const lines = by(r => short(r.at[choice.series]));
  const alone = [...lines.values()].every(own => new Set(own.map(r => r.at[choice.x])).size === own.length);
  return alone ? lines : by(r => short(r.at[choice.series]) + ", " + r.at.arm);
}
function draw(data, choice) {
  const rows = chosen(data, choice), percent = choice.metric === "rate";
  if (!rows.length) return "<p>No arm has these values.</p>";
  const show = v => percent ? (100 * v).toFixed(1) : v.toFixed(2);
  const tip = r => {
    const [value, low, high] = r[choice.metric];
    const interval = low === null ? "too few trainings for an interval" : `[${show(low)}, ${show(high)}]`;
    return `${r.run}, ${r.at.arm}: ${show(value)} ${interval}`;
  };
  const places = values(rows, choice.x), lines = grouped(rows, choice);
  return (choice.shape === "heat" ? heat : curves)({rows, places, lines, percent, show, tip, choice});
}
function curves({places, lines, rows, percent, tip, choice}) {
  const [width, height, left, right, top, bottom] = [760, 340, 64, 230, 12, 46], metric = choice.metric;
  const numbers = places.every(v => typeof v === "number");
  const log = numbers && places[0] > 0 && places[places.length - 1] / places[0] > 4, scale = v => log ? Math.log(v) : v;
  // Without an interval the line has no length.
  const lower = r => r[metric][1] ?? r[metric][0], upper = r => r[metric][2] ?? r[metric][0];
  const low = percent ? 0 : Math.min(...rows.map(lower));
  const high = Math.max(...rows.map(upper), low + 1e-9);
  const ends = [scale(places[0]), scale(places[places.length - 1])];
  const at = v => numbers && ends[1] > ends[0] ? (scale(v) - ends[0]) / (ends[1] - ends[0])
    : places.length > 1 ? places.indexOf(v) / (places.length - 1) : 0.5;
  const x = v => left + 14 + (width - left - right - 28) * at(v);
  const y = v => height - bottom - (height - top - bottom) * (v - low) / (high - low);
  let out = "", last = -1e9, number = 0;
  for (let i = 0; i < 5; i++) {
    const v = low + (high - low) * i / 4;
    out += `<line x1="${left}" x2="${width - right}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/>` +
      `<text x="${left - 8}" y="${y(v) + 4}" text-anchor="end">${percent ? (100 * v).toFixed(0) + "%" : v.toFixed(1)}</text>`;
  }
  for (const v of places) if (x(v) - last > 52) {
    last = x(v);
    out += `<text x="${last}" y="${height - bottom + 18}" text-anchor="middle">${text(short(v))}</text>`;
  }
  for (const [name, own] of lines) {
    const colour = COLOURS[number % COLOURS.length], shift = 3 * (number % 5 - 2);
    own.sort((a, b) => x(a.at[choice.x]) - x(b.at[choice.x]));
    const spots = own.map(r => [x(r.at[choice.x]) + shift, r]);
    out += `<polyline points="${spots.map(([a, r]) => `${a},${y(r[metric][0])}`).join(" ")}" fill="none" stroke="${colour}"/>`;
    for (const [a, r] of spots) {
      out += `<g><title>${text(tip(r))}</title><line x1="${a}" x2="${a}" y1="${y(lower(r))}" y2="${y(upper(r))}" ` +
        `stroke="${colour}" stroke-width="2"/><circle cx="${a}" cy="${y(r[metric][0])}" r="4.5" fill="${colour}"/></g>`;
    }
    if (number < 14) {
      out += `<rect x="${width - right + 14}" y="${top + 22 * number}" width="14" height="14" fill="${colour}"/>` +
        `<text x="${width - right + 34}" y="${top + 22 * number + 12}">${text(name)}</text>`;
    }
    number++;
  }
  const title = text(choice.x) + (log ? " (logarithmic)" : "");
  out += `<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${title}</text>`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img">${out}</svg>`;
}
function heat({rows, places, lines, percent, show, tip, choice}) {
  const [label, cell, row] = [230, Math.max(70, Math.min(130, 900 / places.length)), 30], metric = choice.metric;
  const all = rows.map(r => r[metric][0]);
  const low = percent ? 0 : Math.min(...all), high = percent ? 1 : Math.max(...all, low + 1e-9);
  const left = v => label + cell * places.indexOf(v), middle = (v, y, s) =>
    `<text x="${left(v) + cell / 2}" y="${y}" text-anchor="middle">${s}</text>`;
  let out = "", y = 0;
  for (const v of places) out += middle(v, 16, text(short(v)));
  for (const [name, own] of lines) {
    y += row;
    out += `<text x="${label - 10}" y="${y + 13}" text-anchor="end">${text(name)}</text>`;
    for (const r of own) {
      const share = (r[metric][0] - low) / (high - low);
      out += `<g><title>${text(tip(r))}</title><rect x="${left(r.at[choice.x]) + 1}" y="${y - 7}" ` +
        `width="${cell - 2}" height="${row - 2}" fill="var(--teacher)" fill-opacity="${(0.06 + 0.7 * share).toFixed(3)}"/>` +
        middle(r.at[choice.x], y + 13, show(r[metric][0])) + "</g>";
    }
  }
  out += `<text x="${label + cell * places.length / 2}" y="${y + 44}" text-anchor="middle">${text(choice.x)}</text>`;
  return `<svg viewBox="0 0 ${label + cell * places.length + 10} ${y + 52}" role="img">${out}</svg>`;
}
function wire(data) {
  const form = document.getElementById("chooser"), figure = document.getElementById("figure");
  const pick = (name, title, options, now) => {
    const field = document.createElement("label"), select = document.createElement("select");
    field.append(title + " ", select);
    select.name = name;
    for (const [value, shown] of options) select.add(new Option(shown, value, false, value === now));
    form.append(field, " ");
  };
  const axes = data.axes.map(axis => [axis, data.titles[axis] || axis]);
  pick("metric", "outcome", [["rate", "unsafe decisions, %"], ["log_odds", "log-odds, nats"]], data.choice.metric);
  pick("shape", "as", [["curves", "curves"], ["heat", "heat map"]], data.choice.shape);
  pick("x", "across", axes, data.choice.x);
  pick("series", "by", axes, data.choice.series);
  const roles = [...new Set(data.rows.map(r => r.role))].sort().map(v => [v, v]);
  pick("role", "arms", [["", "all"], ...roles], data.choice.role);
  for (const axis of data.design) if (axis !== "arm") {
    const options = values(data.rows, axis).map(v => [short(v), short(v)]);
    pick("filter " + axis, data.titles[axis] || axis, options, data.choice.filters[axis]);
  }
  form.addEventListener("change", () => {
    const choice = {filters: {}};
    for (const select of form.querySelectorAll("select")) {
      if (!select.name.startsWith("filter ")) choice[select.name] = select.value;
    }
    for (const select of form.querySelectorAll("select")) if (select.name.startsWith("filter ")) {
      const axis = select.name.slice(7);
      select.disabled = axis === choice.x || axis === choice.series;
      choice.filters[axis] = select.value;
    }
    figure.innerHTML = draw(data, choice);
  });
  form.dispatchEvent(new Event("change"));
}
if (typeof document !== "undefined") wire(JSON.parse(document.getElementById("data").textContent));
