// Says what has come into the feed since this page was made. Without scripts the page is reloaded.
const line = document.getElementById("live");
const stream = new EventSource(line.dataset.address);

stream.addEventListener("open", () => { line.textContent = "nothing new"; });
stream.addEventListener("new", (event) => {
  const { count } = JSON.parse(event.data);
  line.textContent = `${count === 100 ? "100 or more" : count} new: reload the page to see them`;
});
stream.addEventListener("changed", () => { line.textContent = "changed: reload the page to see it"; });
stream.addEventListener("error", () => {
  if (stream.readyState === EventSource.CLOSED) line.textContent = "not available: reload the page";
});
