// What a program does with the generated client; the test compares what it prints.
import { client } from "./generated/client.gen";
import { createPost, followUser, readFeed, readPost } from "./generated/sdk.gen";
import type { CreatePostError } from "./generated/types.gen";

declare const process: { env: Record<string, string> };

// A client that is blind to errors has `never` here, and does not compile.
type Code = CreatePostError["code"];
const known: Code = "content_empty";
// @ts-expect-error: a code that no operation has
const unknown: Code = "no_such_code";

async function readAll(userId: string): Promise<string[]> {
  const ids: string[] = [];
  let cursor: string | undefined;
  do {
    const page = await readFeed({ path: { user_id: userId }, query: { limit: 2, cursor } });
    if (page.error) throw new Error(page.error.code);
    ids.push(...page.data.results.map((post) => post.id));
    cursor = page.data.next_cursor ?? undefined;
  } while (cursor);
  return ids;
}

async function main(): Promise<void> {
  client.setConfig({ baseUrl: process.env.API, auth: () => process.env.TOKEN });
  const posted = await createPost({ body: { content: "from TypeScript" } });
  const refused = await createPost({ body: { content: " " } });
  const followed = await followUser({ path: { user_id: "7" } });
  const missing = await readPost({ path: { post_id: "12345" } });
  const told = {
    content: posted.data?.content,
    followee: followed.data?.followee_id,
    feed: await readAll("1"),
    refused: refused.error?.code,
    refusedAsKnown: refused.error?.code === known,
    missing: missing.error?.code,
  };
  console.log(JSON.stringify(told));
}

void main();
