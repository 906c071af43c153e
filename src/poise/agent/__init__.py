"""Agents: a goal, a model and tools; every step on record, and nothing done twice.

tool                   a tool: what it takes, what it may touch, and whether it may be done again
function_tools         Python functions as tools, their schemas from type hints
folder_files           reading and writing inside one folder
calculator             exact arithmetic, bounded
web_fetch              reading named addresses
mcp_tools              tools of MCP servers
tools_file, toolbox    the YAML that says which tools there are, and the tools
records                what happened in a run, on the disk before anything follows from it
model_endpoint         a model behind an OpenAI-compatible server, also one that is served here
prompts                what the model is told, with tools' outputs marked as data
limits                 how much a run may use
states, loop           the states of a run as a typed graph, and what each does
running                a run in its folder, by run_settings
call_runner            one call of a tool: approved, announced, done, and on record
person                 who approves and answers
approval, live_page    a call that waits in several places, and the page of a run that goes on
result_guard           what tools give, read for hidden instructions
memory, memory_folder  what an agent asks of a memory, and that of a folder
run_page               a run's records as its page
automation             a finished run as fixed steps without a model
"""

from poise.agent.automation import Automation, AutomationResult, load_automation, run_automation, save_automation
from poise.agent.limits import AgentLimits
from poise.agent.live_page import LiveRunPage
from poise.agent.memory import AgentMemory, RecalledText
from poise.agent.memory_folder import FolderMemory
from poise.agent.model_endpoint import AgentModel, EndpointModel, ModelAnswer, ServedModel
from poise.agent.person import Nobody, PendingCall, Person
from poise.agent.run_page import replay_run, write_run_page
from poise.agent.run_settings import AgentResult, AgentSettings
from poise.agent.running import run_agent
from poise.agent.tool import AgentTool, ToolContext
from poise.agent.toolbox import open_tools
from poise.agent.tools_file import ToolsFile, read_tools_file

__all__ = [
    "AgentLimits",
    "AgentMemory",
    "AgentModel",
    "AgentResult",
    "AgentSettings",
    "AgentTool",
    "Automation",
    "AutomationResult",
    "EndpointModel",
    "FolderMemory",
    "LiveRunPage",
    "ModelAnswer",
    "Nobody",
    "PendingCall",
    "Person",
    "RecalledText",
    "ServedModel",
    "ToolContext",
    "ToolsFile",
    "load_automation",
    "open_tools",
    "read_tools_file",
    "replay_run",
    "run_agent",
    "run_automation",
    "save_automation",
    "write_run_page",
]
